# make demo        set up, then train on examples/emails.jsonl, show before and after
# make demo-c3po   set up, then teach one sentence of feedback, show the scores by scope
# make test        set up, then run the tests
# make test-oldest the same, with the oldest versions that are admitted
# make check       set up, then lint, types and tests
# make bench       set up with the peers, then measure side by side (two hours)
# make bench-gpu   set up with the peers, then check and measure a GPU
# make help        these lines
# make clean       remove what was set up

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OLDEST = $(VENV)-oldest

# Without the default model (no network, say) the tests that need it are skipped, and say so.
fetch = -$(BIN)/python -m minialign fetch

# What the default is without a GPU: the demonstration is the same everywhere.
SMALL = --model smollm2-135m-instruct --recipe laptop

.PHONY: help demo demo-c3po test test-oldest check bench bench-gpu clean

# Nothing is installed but wheels, and none but those whose hashes constraints.txt has.
WHEELS = install --quiet --only-binary=:all:
CHECKED = $(WHEELS) --require-hashes
OFFERED = --no-index --no-deps --constraint constraints.txt
# The project itself needs nothing from elsewhere.
PROJECT = install --quiet --no-deps --no-build-isolation --no-index --editable .

# A virtual environment with a pip that can check all this, which is checked as well.
define environment
	$(PYTHON) -m venv $(1)
	sed -n '/^pip==/,/[^\\]$$/p' constraints.txt > $(1)/pip.txt
	$(1)/bin/python -m pip $(CHECKED) --requirement $(1)/pip.txt
endef

# The project with one of its extras.
define extra
	$(BIN)/python requirements.py $(1) > $(VENV)/wanted.txt
	$(BIN)/python -m pip $(CHECKED) $(2) --constraint constraints.txt --requirement $(VENV)/wanted.txt
	$(BIN)/python -m pip $(PROJECT)
	touch $@
endef

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

test-oldest: $(OLDEST)/.test
	-$(OLDEST)/bin/python -m minialign fetch
	$(OLDEST)/bin/python -m pytest

bench: $(VENV)/.bench
	$(BIN)/python -m minialign fetch
	$(BIN)/python benchmarks/speed.py

bench-gpu: $(VENV)/.bench
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(VENV)/bin/python:
	$(call environment,$(VENV))

# Of torch, a build that pip's own settings offer, such as one without CUDA, goes before the index's.
$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/bin/python
	@$(BIN)/python -m pip $(CHECKED) $(OFFERED) torch 2> /dev/null || true
	$(call extra,gguf)

# One peer has no wheels, and is built.
$(VENV)/.bench: $(VENV)/.test
	$(call extra,bench,--no-binary=llama-cpp-python)

$(VENV)/.test: $(VENV)/.demo
	$(call extra,test)

$(OLDEST)/.test: pyproject.toml
	$(call environment,$(OLDEST))
	$(OLDEST)/bin/python requirements.py --oldest test > $(OLDEST)/wanted.txt
	$(OLDEST)/bin/python -m pip $(WHEELS) --requirement $(OLDEST)/wanted.txt
	$(OLDEST)/bin/python -m pip $(PROJECT)
	touch $@
