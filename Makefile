# make run    install what is missing, then serve on http://127.0.0.1:7000 until Ctrl-C
# make test   install what is missing, then lint, types, import contracts and all tests
# make check  the same without a real engine or browser: some four minutes, for every change
# make bench  this server measured against bare vLLM, two rounds; ARGS=--quick for one
# make drill  kills every part in every phase of a switch, then at random: what was lost is printed;
#             and thousands of spoilt requests
# make soak   20 minutes (MINUTES=) of mixed clients, switches, kills and a busy machine: what was
#             lost and what grew is printed
# make observe  Prometheus on http://127.0.0.1:9090 beside a running backend, until Ctrl-C
# make test-gpu   on a machine with the card: its models, switches and speeds, with a report
# make lock   after a version in pyproject.toml has changed: writes it into requirements-*.lock
PYTHON ?= python3
BIN := .venv/bin
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
UV := uv==0.13.9
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The very files that a lock lists, by their hashes: no others, and nothing that runs code to be built.
LOCKED := $(PIP) install --quiet --no-deps --require-hashes --only-binary :all:
PROJECT := $(PIP) install --quiet --no-deps --no-build-isolation --editable .

# What Debian has and pip has not; each is a package of its own name.
SYSTEM_TOOLS := prometheus redis-server chromium
DATA := $(or $(LLM_BACKEND_HOME),$(HOME)/.cache/llm-backend)

.PHONY: run test drill soak test-gpu check lint pytest env models clean system bench observe lock

run: env models
	@exec $(BIN)/llm-backend start --foreground

test: system lint pytest

# Without the minute of requests generated from the API's description.
check: lint
	$(BIN)/pytest tests/pure tests/hub tests/gateway --deselect tests/gateway/test_fuzz.py

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: .venv/.dev models
	$(BIN)/pytest

bench: .venv/.dev models
	@exec $(BIN)/llm-backend bench $(ARGS)

# Tests need these and are skipped without. Their packages would start services: policy-rc.d forbids
# that while they are installed, and they are not to come up with the machine either.
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

# Without a GPU it skips, saying why.
test-gpu: .venv/.dev
ifeq ($(DEVICE),gpu)
	@$(BIN)/llm-backend pull
endif
	$(BIN)/pytest tests/gpu -m gpu -s

env: .venv/.$(DEVICE)

# Without a GPU the demo models, built once into ~/.cache/llm-backend; with one, what the default
# model lacks, after saying how much that is.
models: env
ifeq ($(DEVICE),cpu)
	@PYTHONPATH=deployments/engine/site $(BIN)/python -m deployments.checkpoints.demo
else
	@$(BIN)/llm-backend pull --default
endif

# A .venv whose making was cut short is made again; a package whose installing was cut short (pip
# writes RECORD last) is installed again.
.PHONY: venv
venv:
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed; name one with: make run PYTHON=python3.12"; exit 1; }; \
	  echo "Making an environment in .venv"; $(PYTHON) -m venv --clear .venv; }
	@for package in .venv/lib/python3*/site-packages/*.dist-info; do \
	  [ -e "$$package/RECORD" ] || rm -rf "$$package"; done

.venv/.gpu: requirements-gpu.lock pyproject.toml
	@$(MAKE) --no-print-directory venv
	@echo "Installing Ray and vLLM for the GPU (some 4 GB)"
	@{ $(LOCKED) -r requirements-gpu.lock && $(PROJECT); } 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

# PyPI does not carry torch's CPU build. Where pip knows another source for it, that one is used; else
# PyTorch's own index: it has to be the same file. The packages that go with it are PyPI's everywhere,
# which deployments/engine/site lets vLLM import.
.venv/.cpu: requirements-torch-cpu.lock requirements-cpu.lock pyproject.toml
	@$(MAKE) --no-print-directory venv
	@echo "No NVIDIA GPU: installing Ray and vLLM for the CPU (some 1.1 GB, four to ten minutes)"
	@{ { $(LOCKED) -r requirements-torch-cpu.lock || \
	  $(LOCKED) -r requirements-torch-cpu.lock --index-url $(TORCH_CPU_INDEX); } && \
	$(LOCKED) -r requirements-cpu.lock && $(PROJECT); } 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

.venv/.dev: .venv/.$(DEVICE) requirements-dev.lock
	@$(MAKE) --no-print-directory venv
	@echo "Installing what the tests need"
	@$(LOCKED) -r requirements-dev.lock 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

# The CPU's packages and the tests' are chosen together, then written into a file each; the GPU's follow
# the tests'. What is locked stays as it is while it fits; for the newest of all, delete the three files
# first. torch's CPU build is locked by hand in requirements-torch-cpu.lock: uv gets an empty wheel of
# that version, for its own cannot be had everywhere, and what it needs from pyproject.toml.
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
