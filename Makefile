# What a developer repeats. Everything runs in VENV, which `setup` makes once and again when its inputs change.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= demo
WORKERS ?= 2
FILES ?=
SAMPLE ?= 30

BIN := $(VENV)/bin
# The tested versions; they have no releases for Python 3.10.
CONSTRAINTS := $(shell $(PYTHON) -c "import sys; print('-c constraints.txt' * (sys.version_info >= (3, 11)))")
READY := $(VENV)/.ready-$(EXTRAS)

.PHONY: setup demo dev test lint format docs mutants clean help

help:
	@echo "make setup   the environment in $(VENV), with the tested versions of constraints.txt"
	@echo "make demo    upscale a bundled photograph; pictures and figures go to demo/"
	@echo "make dev     what developing takes, too; the following do it themselves"
	@echo "make test    lint, types and tests"
	@echo "make lint    lint and types alone"
	@echo "make format  format the code"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make mutants how many changes of the method's code the tests catch (an hour; not what CI runs)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'ClearSR needs Python 3.10 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	@touch $@

demo: setup
	$(BIN)/clearsr demo --output demo

dev:
	$(MAKE) setup EXTRAS=dev

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread per worker: more would only wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs:
	$(MAKE) setup EXTRAS=dev,docs
	$(BIN)/python docs/build.py

# FILES="models/lora.py sampling/*.py" for some files, SAMPLE=0 for all their mutants.
mutants: dev
	$(BIN)/python -m pip install --quiet cosmic-ray==8.7.0
	OMP_NUM_THREADS=1 $(BIN)/python mutants/run.py --sample $(SAMPLE) --workers $(WORKERS) $(foreach file,$(FILES),'$(file)')

clean:
	rm -rf $(VENV) demo build dist site .pytest_cache .ruff_cache .mypy_cache
