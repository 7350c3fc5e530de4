# make test    the whole suite, with lint and types     make demo    the two-minute story
# Both make .venv first, if need be, with exactly the versions of constraints.txt.

PYTHON ?= python3.11
BIN := .venv/bin
PACKAGES := -e . -e plugins/heat1d -e plugins/pendulum_jax
TOOLS := pytest pytest-xdist ruff mypy matplotlib tomlkit hatchling editables

.PHONY: test lint types suite demo clean

test: lint types suite

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

suite: .venv/installed
	$(BIN)/python -m pytest -n 2

demo: .venv/installed
	$(BIN)/python examples/material_law.py --out demo

.venv/installed: constraints.txt pyproject.toml plugins/heat1d/pyproject.toml plugins/pendulum_jax/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES) $(TOOLS)
	touch $@

clean:
	rm -rf .venv demo
