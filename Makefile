# make run       install missing packages, then serve on http://127.0.0.1:7000 until Ctrl-C
# make test      install missing packages, then run linter, type checker, import contracts and tests;
#                the parts run beside each other, and each is printed when it has ended
# make check     make test without a real engine or browser: some four minutes, for every change
# make bench     measure this server against bare vLLM in two rounds; ARGS=--quick for one
# make drill     kill every part in every phase of a switch, then at random, and print the losses;
#                then send thousands of malformed requests
# make soak      run mixed clients, switches, kills and a busy machine for 20 minutes (MINUTES=), and
#                print what was lost and what grew
# make observe   run Prometheus on http://127.0.0.1:9090 beside a running backend, until Ctrl-C
# make rehearse  on a machine without a GPU: test the GPU's part over a stub of the driver's library
# make test-gpu  on a machine with a GPU: test its models, switches and speeds, and write a report
# make lock      after a change of a version in pyproject.toml: write it into requirements-*.lock
#
# DEVICE=cpu or DEVICE=gpu chooses the packages; by default an NVIDIA card does, with a driver that
# answers or not. PYTHON=python3.12 names another Python for .venv.
BIN := .venv/bin
ifeq ($(origin PYTHON),undefined)
  # The first Python that will do; else python3, which says what is missing.
  PYTHON := $(shell for python in python3 python3.12 python3.11 $(HOME)/.local/bin/python3.12; do \
    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && \
    { echo $$python; exit; }; done; echo python3)
endif
# An environment is whole if its Python runs, finds pip, and was made for this folder. Otherwise it
# counts as none: the system's Python was upgraded, the folder was moved, or making it has failed.
WHOLE := $(shell $(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pip") is None)' \
  2>/dev/null && grep -sqF "$(CURDIR)/$(BIN)/python" $(BIN)/pip && echo yes)
$(if $(WHOLE),,$(shell rm -f .venv/.gpu .venv/.cpu .venv/.dev))
# What this machine has and lacks; needs no package.
HOST := $(if $(WHOLE),$(BIN)/python,$(PYTHON)) -B -m deployments.host
DEVICE := $(shell $(HOST) device)
ifeq ($(DEVICE),)
  $(error Python 3.11 or 3.12 is needed; run: sudo apt install python3 python3-venv)
endif
ifeq ($(origin DEVICE),command line)
  ANY_CARD := --any-card
  ifeq ($(DEVICE),cpu)
    export LLM_BACKEND_PROFILE := cpu-demo
  endif
endif
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
UV := uv==0.13.9
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Install exactly the files that a lock lists, by hash, and no source package, which would run code.
LOCKED := $(PIP) install --quiet --no-deps --require-hashes --only-binary :all:
PROJECT := $(PIP) install --quiet --no-deps --no-build-isolation --editable .

# Programs from Debian that pip does not have; each package has the program's name.
SYSTEM_TOOLS := prometheus redis-server chromium
DATA := $(or $(LLM_BACKEND_HOME),$(HOME)/.cache/llm-backend)

.PHONY: run test drill soak rehearse test-gpu check lint pytest env models clean system bench observe lock

run: env models
	@exec $(BIN)/llm-backend start --foreground

test: system pytest

# Without the minute of requests generated from the API's description.
check: lint
	$(BIN)/pytest tests/pure tests/hub tests/gateway --deselect tests/gateway/test_fuzz.py

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Servers and engines start and stop for most of the time of tests/cluster. The tests that measure no
# time, and the linter, get what that leaves of the cores. Those of the gateway measure: they run alone.
BESIDE := tests/pure tests/hub tests/rehearsal
SELECTED := not gpu and not drill and not rehearse
PARTS := lint pytest-cluster pytest-beside
PYTEST = $(2) $(BIN)/pytest $(1) > .venv/$@.log 2>&1; status=$$?; echo "== $@"; cat .venv/$@.log; exit $$status

pytest: .venv/.dev models
	@$(MAKE) --no-print-directory --jobs $(PARTS)
	$(BIN)/pytest -m '$(SELECTED)' --ignore tests/cluster $(BESIDE:%=--ignore %)

.PHONY: $(PARTS)
pytest-cluster:
	@$(call PYTEST,-m '$(SELECTED)' tests/cluster)

pytest-beside:
	@$(call PYTEST,-m '$(SELECTED)' $(BESIDE),nice -n 19)

bench: .venv/.dev models
	@exec $(BIN)/llm-backend bench $(ARGS)

# Tests that need these programs are skipped without them. The packages would start services:
# policy-rc.d forbids this during the installation, and `systemctl disable` after a reboot.
system:
	@missing=$$(for tool in $(SYSTEM_TOOLS); do command -v $$tool >/dev/null || echo $$tool; done); \
	[ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && echo "Installing" $$missing && $(MAKE) --no-print-directory install-system MISSING="$$(echo $$missing)"; } \
	  || echo "Not installed, so their tests are skipped:" $$missing

.PHONY: install-system
install-system:
	@policy=/usr/sbin/policy-rc.d; [ -e $$policy ] || { \
	  trap "rm -f $$policy" EXIT INT TERM; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod 755 $$policy; }; \
	apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(MISSING) >/dev/null
	@for service in $(MISSING); do systemctl disable $$service >/dev/null 2>&1 || true; done

observe:
	@command -v prometheus >/dev/null || { echo "Prometheus is not installed. Install it with" \
	  "'apt-get install --no-install-recommends prometheus', or use configs/compose.yaml with Docker."; exit 1; }
	@mkdir -p "$(DATA)/prometheus"
	@echo 'Prometheus: http://127.0.0.1:9090, where "Alerts" says what is wrong. Ctrl-C stops it.'
	@exec prometheus --config.file=configs/prometheus/prometheus.yml --log.level=warn \
	  --storage.tsdb.path="$(DATA)/prometheus" --web.listen-address=127.0.0.1:9090

drill: .venv/.dev models
	$(BIN)/pytest tests/cluster/test_kills.py tests/gateway/test_mutations.py -m drill -s

soak: .venv/.dev models
	@exec $(BIN)/python -m tests.soak --minutes $(or $(MINUTES),20)

# What asks the driver, the flags in vLLM's own Python for CUDA (10 MiB of its wheel, fetched once), a
# server with engines on the CPU whose place is the stub's card, and the tests of `make test-gpu` on it.
rehearse: .venv/.dev models
	$(BIN)/pytest tests/rehearsal -m 'rehearse or not rehearse'
	$(BIN)/pytest tests/gpu -m gpu --rehearse -s

# Without a GPU the tests are skipped with the reason.
test-gpu: .venv/.dev
ifeq ($(DEVICE),gpu)
	@$(BIN)/llm-backend pull
endif
	$(BIN)/pytest tests/gpu -m gpu -s

env: .venv/.$(DEVICE)
	@$(HOST) check $(DEVICE) $(ANY_CARD)

# Without a GPU, build the demo models once into ~/.cache/llm-backend. With a GPU, download what the
# default model lacks, after printing its size.
models: env
ifeq ($(DEVICE),cpu)
	@PYTHONPATH=deployments/engine/site $(BIN)/python -m deployments.checkpoints.demo
else
	@$(BIN)/llm-backend pull --default
endif

# What is not whole, or holds the packages of the other device, is made again: both have the same
# files. A package without RECORD, which pip writes last, is incomplete and is installed again.
.PHONY: venv
venv:
	@case "$(WHOLE) $(FOR)/$(if $(FOR),$$($(HOST) installed))" in \
	  "yes gpu/cpu"|"yes cpu/gpu") echo "The packages in .venv are for another device";; \
	  yes*) exit 0;; \
	esac; \
	$(PYTHON) -B -m deployments.host python || exit 1; \
	rm -rf .venv && echo "Making an environment in .venv" && $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@for package in .venv/lib/python3*/site-packages/*.dist-info; do \
	  [ -e "$$package/RECORD" ] || rm -rf "$$package"; done

.venv/.gpu: requirements-gpu.lock pyproject.toml
	@$(HOST) check gpu --install $(ANY_CARD)
	@$(MAKE) --no-print-directory venv FOR=gpu
	@echo "Installing Ray and vLLM for the GPU (downloads about 4 GB)"
	@{ $(LOCKED) -r requirements-gpu.lock && $(PROJECT); } 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

# PyPI does not have torch's CPU build. It comes from pip's configured index if that has it, else from
# PyTorch's own index; the hash requires the same file. The packages that belong to torch always come
# from PyPI; deployments/engine/site lets vLLM import them.
.venv/.cpu: requirements-torch-cpu.lock requirements-cpu.lock pyproject.toml
	@$(HOST) check cpu --install $(ANY_CARD)
	@$(MAKE) --no-print-directory venv FOR=cpu
	@echo "Installing Ray and vLLM for the CPU (downloads about 1.1 GB, four to ten minutes)"
	@{ { $(LOCKED) -r requirements-torch-cpu.lock || \
	  $(LOCKED) -r requirements-torch-cpu.lock --index-url $(TORCH_CPU_INDEX); } && \
	$(LOCKED) -r requirements-cpu.lock && $(PROJECT); } 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

.venv/.dev: .venv/.$(DEVICE) requirements-dev.lock
	@$(MAKE) --no-print-directory venv
	@echo "Installing the packages for the tests"
	@$(LOCKED) -r requirements-dev.lock 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

# uv resolves the packages for the CPU and for the tests together, then writes one file each; the file
# for the GPU follows the versions of the tests' file. Locked versions stay while they fit: for the
# newest ones, delete the three files first. torch's CPU build is locked by hand in
# requirements-torch-cpu.lock. uv gets an empty wheel of that version, because the real one is not
# available everywhere; pyproject.toml lists what torch needs.
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
  --generate-hashes --only-binary :all: --custom-compile-command 'make lock'
CPU_EXTRAS := --extra cpu --group demo --find-links .venv/lock --no-emit-package torch
TORCH_CPU = torch-$(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements-torch-cpu.lock)
lock: venv
	@echo "Writing requirements-{cpu,gpu,dev}.lock"
	@$(PIP) install --quiet '$(UV)' 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@rm -rf .venv/lock && mkdir -p .venv/lock/$(TORCH_CPU).dist-info && cd .venv/lock && \
	  printf 'Metadata-Version: 2.1\nName: torch\nVersion: %s\n' '$(TORCH_CPU:torch-%=%)' > $(TORCH_CPU).dist-info/METADATA && \
	  touch $(TORCH_CPU).dist-info/RECORD && ../bin/python -m zipfile -c $(TORCH_CPU)-py3-none-any.whl $(TORCH_CPU).dist-info
	@cat requirements-cpu.lock requirements-dev.lock > .venv/lock/all 2>/dev/null || true
	@$(COMPILE) $(CPU_EXTRAS) --extra dev --output-file .venv/lock/all
	@$(COMPILE) $(CPU_EXTRAS) --constraints .venv/lock/all --output-file requirements-cpu.lock
	@$(COMPILE) --extra dev --constraints .venv/lock/all --output-file requirements-dev.lock
	@$(COMPILE) --extra gpu --constraints requirements-dev.lock --output-file requirements-gpu.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
