# make demo        set up, then train on examples/emails.jsonl, show before and after
# make demo-c3po   set up, then teach one sentence of feedback, show the scores by scope
# make test        set up, then run the tests
# make check       set up, then lint, types and tests
# make bench       set up with the peers, then measure side by side (two hours)
# make bench-gpu   set up with the peers, then check and measure a GPU
# make help        these lines
# make clean       remove what was set up

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Without the default model (no network, say) the tests that need it are skipped, and say so.
fetch = -$(BIN)/python -m minialign fetch

# What the default is without a GPU: the demonstration is the same everywhere.
SMALL = --model smollm2-135m-instruct --recipe laptop

.PHONY: help demo demo-c3po test check bench bench-gpu clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.demo
	$(BIN)/python train.py --method ditto --demos examples/emails.jsonl $(SMALL) --overwrite

demo-c3po: $(VENV)/.demo
	$(BIN)/python train.py --method c3po --data examples/c3po/cheers $(SMALL) --overwrite
	$(BIN)/python evaluate.py runs/cheers

test: $(VENV)/.test
	$(fetch)
	$(BIN)/python -m pytest

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(fetch)
	$(BIN)/python -m pytest

bench: $(VENV)/.bench
	$(BIN)/python -m minialign fetch
	$(BIN)/python benchmarks/speed.py

bench-gpu: $(VENV)/.bench
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf]"
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
