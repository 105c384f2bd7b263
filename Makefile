# One environment in .venv serves every target; it is made when it is missing.
# An existing .venv is kept, with its torch where that fits pyproject.toml.
# No target needs root, and after the installation none needs a network.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
MUTATE_ARGS ?=
# of each operation of the API; 2000 make 50,000 requests, 12 make 300 and what covers the schemas
API_EXAMPLES ?= 2000

VENV := .venv
BIN := $(VENV)/bin
DEMO_INSTALLED := $(VENV)/.installed-demo
DEV_INSTALLED := $(VENV)/.installed-dev
ALL_INSTALLED := $(VENV)/.installed-all
BENCH_INSTALLED := $(VENV)/.installed-bench
# a file's tests share what is costly to make, so they stay in one process
PYTEST := $(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help preflight install install-all demo test test-effects test-faults test-api test-gone tune check bench-env bench-full clean

help: ## show this list
	@echo "make TARGET [PYTHON=python3.12] [PIP_ARGS='--no-index --find-links DIR']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

preflight: ## say what this machine lacks for the demo, a line each
	@command -v $(PYTHON) > /dev/null || [ -x $(BIN)/python ] || { \
	  echo "preflight MISSING  '$(PYTHON)' is not there; install Python 3.10 to 3.13, or name" \
	       "one: make demo PYTHON=/path/to/python3.13"; exit 1; }
	@$$(command -v $(PYTHON) || echo $(BIN)/python) scripts/preflight.py \
	  --venv $(VENV) --make-version "$(MAKE_VERSION)"

$(BIN)/python:
	@$(MAKE) --no-print-directory preflight
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(DEMO_INSTALLED): pyproject.toml | $(BIN)/python
	@echo "installing twotower[demo] into $(VENV)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(DEV_INSTALLED): pyproject.toml | $(BIN)/python
	@echo "installing twotower[dev] into $(VENV)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(DEMO_INSTALLED)

$(ALL_INSTALLED): pyproject.toml | $(BIN)/python
	@echo "installing twotower[dev,all] into $(VENV)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	@$(PIP_INSTALL) --editable '.[dev,all]'
	@touch $@ $(DEMO_INSTALLED) $(DEV_INSTALLED)

$(BENCH_INSTALLED): pyproject.toml | $(BIN)/python
	@echo "installing twotower[bench] into $(VENV)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@ $(DEMO_INSTALLED)

install: $(DEV_INSTALLED) ## make .venv with everything that tests and checks use

install-all: $(ALL_INSTALLED) ## the same, and the large packages without which some tests are skipped

demo: preflight $(DEMO_INSTALLED) ## import a real feed log, train it night by night, publish, retrieve
	@$(BIN)/python examples/kuairand/demo.py

tune: $(DEMO_INSTALLED) ## make the tuning tables again, on the tuning days only
	@$(BIN)/python examples/kuairand/tune.py

test: $(DEV_INSTALLED) ## the tests, at most 10 minutes on 2 cores
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-effects: $(DEV_INSTALLED) ## break the code on purpose, formula by formula: the tests must notice
	$(BIN)/python scripts/mutate.py tests/mutations.toml $(MUTATE_ARGS)

test-faults: $(DEV_INSTALLED) ## the long checks: slow tests, then test-effects; at most 15 minutes on 2 cores
	$(PYTEST) -m slow $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory test-effects

test-api: $(DEV_INSTALLED) ## every night: 50,000 requests made from the OpenAPI document, some 25 minutes
	TWOTOWER_API_EXAMPLES=$(API_EXAMPLES) $(BIN)/python -m pytest tests/test_serving_schemathesis.py $(PYTEST_ARGS)

test-gone: $(DEV_INSTALLED) ## long: clients that go away in the middle of a request, a million times
	TWOTOWER_GONE=1000000 $(BIN)/python -m pytest tests/test_serving_gone.py $(PYTEST_ARGS)

check: $(DEV_INSTALLED) ## ruff, its formatting, and mypy in strict mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-env: $(BENCH_INSTALLED) ## add to .venv what the benchmarks use
	@$(BIN)/python -m pip list --disable-pip-version-check

bench-full: $(BENCH_INSTALLED) ## search among 10 million items: recall against speed, build, memory
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_search.py --items 10000000 --sets gaps \
	  --engines faiss_ivf faiss_ivf_pq --json bench-search-10m.json --plot bench-search-10m.png

clean: ## remove caches, builds and the demo's output; .venv and your own data stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis demo-report.json demo-recall.png
	rm -rf examples/*/twotower-data examples/*/twotower-data-*
	find src tests scripts examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
