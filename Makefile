# make test: everything that CI checks.  make extras: the tests of Lightning, Hugging Face and da4ml, which it installs.
# make demo: the whole way on real data.  make bench: speed and accuracy, by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup test lint extras demo bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "pquant_fx needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

extras: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[da,dev,lightning,huggingface]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m extras

demo: setup
	$(BIN)/pquant-fx demo

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
