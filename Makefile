# The only commands to know. They need Python 3.11 or newer, pip and make; all else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable
# In two processes: with three, real clusters come up too slowly where a machine has other work.
TEST := $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help train test slow check docs dist clean

help: ## list these commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 8

train: .venv/.ready ## set everything up and train on the digits that come with scikit-learn
	$(BIN)/akkordeon train digits

test: .venv/.ready-dev ## set everything up and run the tests
	$(TEST)

slow: .venv/.ready-dev ## run the studies that take minutes
	$(BIN)/python -m pytest -m slow --timeout 1800

check: .venv/.ready-dev ## lint, types, layers, then the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TEST)

docs: .venv/.ready-dev ## build the site of the documents, where a warning is an error
	$(BIN)/python docs/build.py

dist: .venv/.ready-dev ## build the wheel and the source archive
	rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build

clean: ## remove what these commands made
	rm -rf .venv .cache build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks docs examples -name __pycache__ -prune -exec rm -rf {} +

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Akkordeon needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo missing)." \
	    "Name a newer one, as in: make test PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.ready: .venv/.made pyproject.toml constraints.txt
	$(INSTALL) .
	@touch $@

.venv/.ready-dev: .venv/.made pyproject.toml constraints.txt
	$(INSTALL) '.[dev,docs,figures,prometheus,ray,river,serve,streams,tensorboard,web]'
	@touch .venv/.ready $@
