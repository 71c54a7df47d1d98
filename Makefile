# make demo · make test · make check · make test-slow · make bench
#
# Each command makes its own environment first, in .venv. On a machine without an NVIDIA card, a CPU-only PyTorch is
# much smaller: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(PIP_ARGS)

.PHONY: demo test test-slow check bench clean

demo: $(VENV)/installed  ## train the base model on the embedded fables and print one that it writes
	$(BIN)/mini-transformer demo

test: $(VENV)/installed-dev  ## the tests, without the slow ones and those that need a GPU
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/installed-dev  ## the slow ones: kills, faults, long runs on several processes
	$(BIN)/python -m pytest -m slow -s

check: $(VENV)/installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## how fast it trains and writes here, beside transformers (some minutes, on a quiet machine)
	$(BIN)/python benchmarks/generate_speed.py
	$(BIN)/python benchmarks/train_speed.py

clean:  ## remove the environment and the demo's model
	rm -rf $(VENV) demo-out

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing (PyTorch is large: this can take some minutes)"
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e ".[dev]"
	touch $@
