# One obvious command a job. Each sets up what it needs: `make demo` and `make test` work on a fresh machine
# with Python 3.11 or later and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-fast lint bench clean
help:
	@echo "make demo | test | test-fast | lint | bench | clean"

setup: $(STAMP)
$(STAMP): pyproject.toml
	@echo "Setting up $(VENV) (several GB the first time: torch)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[dev,baselines]"
	@touch $@

demo: setup
	$(BIN)/ecgmeta demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope --max-worker-restart=0

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope --max-worker-restart=0 -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tests.bench data
	$(BIN)/python -m tests.bench augment
	$(BIN)/python -m tests.bench cost
	$(BIN)/python -m tests.bench graphs
	$(BIN)/python -m tests.bench tasks

clean:
	rm -rf $(VENV) build dist *.egg-info
