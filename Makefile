# Two commands on a fresh machine: `make demo` and `make test`. Both set up their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# One thread per test process: two of them share the machine, and small arrays do not profit from more.
# Compiling is what tests on JAX do most of the time. Unoptimised machine code gives the same numbers to rounding, and
# XLA's plain emitters, all of a program in one piece, make it in a quarter of the time.
XLA_TEST_FLAGS := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
	--xla_cpu_parallel_codegen_split_count=1
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg XLA_FLAGS="$(XLA_TEST_FLAGS)"

.PHONY: demo test lint docs clean

demo: $(READY)  ## train heat_sip, write fields and pictures, say where they are
	$(BIN)/phinverse run scenarios/heat_sip.yaml

test: $(READY)  ## all tests, both backends
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

docs: $(READY)  ## regenerate the scenario reference and the JSON Schema from the code
	$(BIN)/python docs/generate.py

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
