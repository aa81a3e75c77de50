# Every goal explains itself: `make` prints this list.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev system demo test test-fast check format schemas docs bench gpu clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "vitrim needs Python 3.11 or newer with venv; none was found on PATH (on Debian: apt-get install python3 python3-venv)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[cpu,openvino]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[cpu,openvino,distributed,dev]"
	@touch $@

setup: $(VENV)/.installed ## install vitrim into .venv

setup-dev: $(VENV)/.installed-dev ## install vitrim and what its tests need

system: ## install what some tests need from the system (Chromium, an SSH server), where apt allows it
	@sh tests/system_packages.sh

demo: setup ## the main job on an embedded model: train, prune, repair, distil, quantize, compile, validate
	$(BIN)/vitrim demo --output out/demo

test: setup-dev system ## run every test; ends with a table of what was skipped and why
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not serial" --durations 30 --durations-min 15
	$(BIN)/python -m pytest -m serial -p no:randomly

test-fast: setup-dev ## run the tests that take less than ten seconds each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not serial and not slow and not real"

check: setup-dev ## format, lint, types, import contracts, schemas, results page: what CI demands besides the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pipeline.schemas --check
	$(BIN)/python benchmarks/results_page.py --check

format: setup-dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: setup ## write the published JSON schemas to docs/schemas
	$(BIN)/python -m pipeline.schemas

docs: setup-dev ## build the documentation as a site in site/, every link checked
	$(BIN)/zensical build --strict --clean

bench: setup-dev ## run the benchmarks behind every figure in the docs (needs the assets; some hours)
	sh benchmarks/run_all.sh
	$(BIN)/python benchmarks/results_page.py

# The first interpreter whose torch sees a GPU runs it; nothing is installed where there is one.
gpu: ## run the benchmarks that need an NVIDIA GPU (GPU_FLAGS="--minutes 9 --images FOLDER"; docs/gpu.md)
	@sees() { "$$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }; \
	for python in "$(PYTHON)" "$(BIN)/python"; do \
		if [ -n "$$python" ] && sees "$$python"; then exec "$$python" benchmarks/gpu.py $(GPU_FLAGS); fi; \
	done; \
	command -v nvidia-smi >/dev/null || { echo "make gpu needs an NVIDIA GPU and torch with CUDA: neither $(PYTHON) nor $(BIN)/python sees one (PYTHON=... names another; python benchmarks/gpu.py --device cpu --small tries the script without)"; exit 2; }; \
	$(MAKE) setup && exec $(BIN)/python benchmarks/gpu.py $(GPU_FLAGS)

clean: ## remove the environment, caches and outputs (not the store)
	rm -rf $(VENV) out site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
