PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow chaos bench lint audit

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "switch-distill needs Python 3.11 or newer; choose one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/switch-distill run demo

test: install
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m slow

chaos: install
	$(BIN)/python -m tests.chaos --kills 100

bench: install
	$(BIN)/python -m benchmarks.run

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs the internet: pip-audit asks PyPI for known vulnerabilities of the pinned packages.
audit: install
	$(BIN)/bandit --quiet -c pyproject.toml -r distill teachers students pipelines benchmarks
	$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r constraints.txt
