# `make` alone lists the targets. Each one makes its own virtual environment and installs what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-heavy test-histories bench docs lint types format check clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s:

demo: $(VENV)/.demo ## Embed real pictures, index them, search them in English and Chinese
	$(BIN)/isthmus demo --folder $(DEMO) $(ARGS)

test: $(VENV)/.dev ## Run the quick tests: each promise once, in minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/.dev ## Run the slower tests: both engines, S3, kills, training, the README's commands
	$(BIN)/python -m pytest -m 'slow and not heavy' -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-heavy: $(VENV)/.dev ## Run the heavy tests: kills, many rows, a real S3 server
	HYPOTHESIS_PROFILE=free $(BIN)/python -m pytest -m heavy $(ARGS)

test-histories: $(VENV)/.dev ## Compare random histories of a table with a model: 10,000 steps
	ISTHMUS_HISTORY_STEPS=10000 $(BIN)/python -m pytest -m 'slow or not slow' -n 2 tests/e2e/test_any_history.py $(ARGS)

bench: $(VENV)/.dev ## The benches in small; fails on a gross regression (see benchmarks/README.md)
	$(BIN)/python -m benchmarks.quick

docs: $(VENV)/.docs ## Build the documentation into site/; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

format: $(VENV)/.dev ## Rewrite to style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: lint types docs test bench ## All that CI runs

clean: ## Remove the virtual environment and what the demo made
	rm -rf $(VENV) $(DEMO) build site *.egg-info

# The constraints hold the exact set of versions that was tried together.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing isthmus and what the demo needs into $(VENV) …"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,s3]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing isthmus and what the tests need into $(VENV) …"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing what the documentation needs into $(VENV) …"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@
