# make train   set up .venv and train the tiny agent       make test   set up .venv and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A second `make train` continues a run that was interrupted; ARGS=--overwrite starts it again.
ARGS ?= --resume

.PHONY: train test lint compare bench clean help

train: $(VENV)/installed
	$(BIN)/elpo train recipes/tiny.yaml $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compare: $(VENV)/installed
	$(BIN)/elpo compare studies/sparse.yaml
	$(BIN)/elpo compare studies/dense.yaml

# Figures of speed as ratios, and counts of work; about half an hour.
bench: $(VENV)/installed
	$(BIN)/python benchmarks/counts.py
	$(BIN)/python benchmarks/rollouts.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/engine.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

help:
	@echo "make train | test | lint | compare | bench | clean    (PYTHON=$(PYTHON))"

# torch goes first and alone: its wheel decides which others fit.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@
