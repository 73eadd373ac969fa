# Everything runs in .venv, made on first use and reused while pyproject.toml and constraints.txt are unchanged.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --progress-bar off --constraint constraints.txt --editable

# A process a core, a thread each: that is faster than threads. A file's tests share their fixtures, so they stay together.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: quickstart test test-slow lint docs clean

quickstart: $(VENV)/installed
	$(BIN)/freqformer quickstart

test: $(VENV)/installed-test lint
	$(TESTS) -m "not slow" $(PYTEST)

test-slow: $(VENV)/installed-test
	$(TESTS) -m slow $(PYTEST)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/: what is missing or leads nowhere stops it.
docs: $(VENV)/installed-test
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(INSTALL) ".[all]"
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis
