# `make demo` and `make test` set everything up by themselves; a second time they are quick.
#   PYTHON=python3.12 make test    chooses the interpreter (3.11 or newer)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types layers unit fuzz docs format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, pre-train a teacher on handwritten digits and compare what its attention is worth"
	@echo "make test    set up, then lint, types, import layers, tests and docs"
	@echo "make test-slow  the longer versions of some tests"
	@echo "make fuzz    look for faults: bad input, kills, failing disks, leaks; MINUTES=10 for each kind, SEED=0"
	@echo "make format  rewrite the code in the project's format"
	@echo "make clean   remove the virtual environment and caches"

demo: $(VENV)/.runtime
	$(BIN)/attention-transfer demo $(ARGS)

# Two at once: mypy has one core, and the tests are ready for a second one long before it ends.
test: $(VENV)/.dev
	$(MAKE) --jobs=2 lint types layers unit docs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "attention-transfer needs Python 3.11 or newer; name one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@

# Not compiled at once: most of its modules are never imported, and those that are get compiled then.
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	@touch $@ $(VENV)/.runtime

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m long $(ARGS)

# Some fifteen kinds, each for so many minutes; what is found is listed at the end of each.
fuzz: MINUTES = 10
fuzz: SEED = 0
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 ATTENTION_TRANSFER_MINUTES=$(MINUTES) ATTENTION_TRANSFER_SEED=$(SEED) \
		ATTENTION_TRANSFER_FAULTS=100000 $(BIN)/python -m pytest -s tests/faults $(ARGS)

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
