# SPDX-License-Identifier: Apache-2.0
# Every target sets itself up: the virtual environment is made once and remade when the pins change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
export MPLBACKEND := Agg
export HF_HUB_OFFLINE := 1
# Threads that wait for work by spinning slow a busy machine down many times.
export OMP_WAIT_POLICY := passive

.PHONY: help install demo train-demo test test-full lint format types bench bench-peers tutorials docs clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,language,test]'
	touch $(STAMP)

install: $(STAMP) ## make the virtual environment

demo: $(STAMP) ## align a diffusion model of handwritten digits; pictures in demo-out/
	$(BIN)/python -m pyro_tilt.examples.digits --out demo-out

train-demo: $(STAMP) ## train the digit models again from their seeds
	$(BIN)/python -m pyro_tilt.examples.digits.train

test: lint types ## lint, types, unit and statistical tests, doctests, tutorials in smoke mode
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-full: lint types ## everything, the slow statistical runs included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m ''

lint: $(STAMP) ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP) ## format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy
	$(BIN)/mypy

bench: $(STAMP) ## benchmarks beside their peers, written to benchmarks/RESULTS.md
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps particles
	$(BIN)/python -m benchmarks

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet torch==2.13.0
	$(PEERS)/bin/pip install --quiet --requirement benchmarks/peers/requirements.txt
	touch $@

bench-peers: $(STAMP) $(PEERS)/.installed ## constrained writing beside genlm-control and llamppl (2 GB)
	$(BIN)/python -m benchmarks constrained_peers

tutorials: $(STAMP) ## rebuild the executed notebooks from the scripts
	$(BIN)/python -m tutorials.build

docs: $(STAMP) ## the documentation as HTML
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

clean: ## remove what the targets made
	rm -rf $(VENV) $(PEERS) demo-out docs/_build build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
