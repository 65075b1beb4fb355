# What a developer repeats. Everything runs in VENV, which `setup` makes once and again when its inputs change.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
WORKERS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRAS)

.PHONY: setup demo test lint format docs clean help

help:
	@echo "make setup   the environment in $(VENV), with the tested versions of constraints.txt"
	@echo "make demo    upscale a bundled photograph; pictures and figures go to demo/"
	@echo "make test    lint, types and tests"
	@echo "make lint    lint and types alone"
	@echo "make format  format the code"
	@echo "make docs    the documentation as a site, in site/"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'ClearSR needs Python 3.10 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: setup
	$(BIN)/clearsr demo --output demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread per worker: more would only wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs:
	$(MAKE) setup EXTRAS=$(EXTRAS),docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo build dist site .pytest_cache .ruff_cache .mypy_cache
