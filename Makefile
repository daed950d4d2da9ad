# Thin targets: everything they do can be typed by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STAMP := $(VENV)/.installed
RUN ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format types bench notebooks build lock clean

help:  ## Show this help
	@echo "make TARGET"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12 | sed 's/^/  /'

setup: $(STAMP)  ## Make .venv from the lock file and install the package into it (editable)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "skelact needs Python 3.11 to 3.13; choose one with: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): requirements.lock pyproject.toml | $(VENV)/bin/python
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip sync --quiet --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup  ## Pretrain UmURL on real motion data, answer the three questions, draw pictures (about five minutes)
	$(BIN)/skelact experiment=umurl_hdm05 evaluate=[linear,retrieval,missing] run_dir=$(RUN) overwrite=true
	$(BIN)/skelact plot checkpoint=$(RUN) kind=tsne
	$(BIN)/skelact plot checkpoint=$(RUN) kind=clip
	@echo "demo: results in $(RUN)/results.json, pictures in $(RUN)/*.png and $(RUN)/*.gif"

test: setup  ## Run the tests (those marked slow, gpu or network-bound apart)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu" tests

test-all: setup  ## Run every test that this machine can run
	$(BIN)/python -m pytest -q tests

lint: setup  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## Check types
	$(BIN)/mypy

bench: setup  ## Measure this machine: data, probes, training
	$(BIN)/skelact benchmark data
	$(BIN)/skelact benchmark linear
	$(BIN)/skelact benchmark retrieval
	$(BIN)/skelact benchmark methods

notebooks: setup  ## Execute the notebooks in place (they read the demo's run)
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

build: setup  ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build --no-isolation

lock: setup  ## Pin the newest versions again
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra joblib --extra submitit --extra hdf5 --extra dev --output-file requirements.lock pyproject.toml

clean:  ## Remove what the targets above made (runs and prepared stores stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
