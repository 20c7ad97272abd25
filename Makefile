# Everything runs from virtual environments made here; Python >= 3.10 is all that must be there.
PYTHON ?= python3
VENV := .venv
VENV_T5 := .venv-t5
BIN := $(VENV)/bin
# What opens an encoder with transformers: the tests that its version can change.
OPENING := $(addprefix tests/,adapters encoder explaining onnx tasks training \
	test_all_tasks.py test_families.py test_predict.py)
# At most four tests at a time, a file of them each, with one thread: a worker holds an encoder. One
# that dies ends all: xdist would wait for the rest of its file for ever.
PYTEST := -m pytest -q -n logical --maxprocesses 4 --dist loadfile --max-worker-restart 0
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: help install quickstart lint format test test-all test-t5 clean

help:                ## this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

install: $(VENV)/.done  ## the virtual environment, with everything

$(VENV)/.done: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[export,bundled,dev]'
	touch $@

$(VENV_T5)/.done: pyproject.toml constraints.txt constraints-t5.txt
	$(VENV_T5)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV_T5)
	$(VENV_T5)/bin/python -m pip install -q -c constraints-t5.txt torch
	$(VENV_T5)/bin/python -m pip install -q -c constraints-t5.txt -e '.[onnx,bundled,dev]'
	touch $@

# accelerate gives a process one CPU thread unless this says otherwise.
quickstart: export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
quickstart: install  ## train a Swahili adapter, switch it, export it, compare the answers
	PATH="$(CURDIR)/$(BIN):$$PATH" accelerate launch recipes/lora_sw.py

lint: install        ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install      ## put the code into its format
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .

test test-t5 test-all: export OMP_NUM_THREADS ?= 1

test: install        ## the tests, less the slow ones
	$(BIN)/python $(PYTEST) -m "not slow"

test-t5: $(VENV_T5)/.done  ## the tests of what opens an encoder, on transformers 5
	$(VENV_T5)/bin/python $(PYTEST) -m "not slow and not optimum" $(OPENING)

test-all: test       ## the tests, and then the slow ones
	$(BIN)/python $(PYTEST) -m slow

clean:               ## what the targets above made
	rm -rf $(VENV) $(VENV_T5) build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
