# Every target makes its own environment in .venv first; nothing else has to be installed.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
CORE := $(VENV)/.core
STAMP := $(VENV)/.dev

.PHONY: demo test lint fix bench clean

demo: $(CORE)  ## train a small model on drawn scenes, evaluate it, write runs/demo
	$(BIN)/setr demo

test: $(STAMP)  ## the whole test suite in JOBS processes, no network
	$(BIN)/python -m pytest -m "not alone" --numprocesses $(JOBS) --dist loadfile
	$(BIN)/python -m pytest -m alone $$(grep -l 'mark\.alone' tests/test_*.py)

lint: $(STAMP)  ## formatting, lint rules and types, as CI runs them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(STAMP)  ## apply formatting and safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## data path and evaluation; --peer-python adds mmsegmentation beside them
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/evaluation.py --only slide metric-uint8 metric-int64 --out runs/bench

# The demo needs the core and nothing else; tests and lint need every extra that CI exercises.
$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "."
	@touch $(CORE)

$(STAMP): $(CORE)
	$(PIP) ".[dev]"
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
