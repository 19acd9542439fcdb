# One virtual environment in .venv; every target makes it if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
CONSTRAINTS := constraints.txt
LINT := lint
# processes that the tests run in; each computes with one thread
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench bench-gpu docs versions study lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

demo: $(STAMP)  ## which 1% of the kernels remove blur, which remove noise? (two minutes; writes demo_output/)
	$(BIN)/python -m sr_zoo demo --out demo_output --overwrite

test: $(STAMP) $(LINT)  ## lint, types, tests and doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not site" -n $(WORKERS) --maxprocesses 8 --dist worksteal

test-all: $(STAMP) $(LINT)  ## everything that `test` runs, and what takes minutes
	$(BIN)/python -m pytest

bench: $(STAMP)  ## measure speed and memory: one table, printed and put into the docs
	mkdir -p .benchmarks
	$(BIN)/python -m pytest tests/benchmarks -m "not slow" --benchmark-only --benchmark-json=.benchmarks/results.json --benchmark-disable-gc --benchmark-columns=median,rounds -q
	$(BIN)/python -m tests.benchmarks.table .benchmarks/results.json docs/explanation/benchmarks.md

bench-gpu: $(STAMP)  ## the same on a CUDA device, in five minutes: one table, printed and put into the docs
	mkdir -p .benchmarks
	$(BIN)/python -m pytest tests/benchmarks/test_on_a_card.py --benchmark-only --benchmark-json=.benchmarks/card.json --benchmark-disable-gc --benchmark-columns=median,rounds -q -rs
	$(BIN)/python -m tests.benchmarks.table .benchmarks/card.json docs/explanation/benchmarks_on_a_card.md

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev,docs]"
	touch $@

docs: $(DOCS_STAMP)  ## the site, executed, into docs/_build/html, and its checks (warnings are errors; no network)
	rm -rf docs/reference/generated
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python -m pytest tests/docs -m site

versions: $(DOCS_STAMP)  ## the site of every tag v* and of the last commit, side by side, into docs/_build/versions [DOCS_URL=address]
	$(BIN)/python docs/versions.py

study: $(STAMP)  ## every claim tested: make study [SEARCH=dir TEST=dir] [FULL=1] (minutes, hours if full; goes on where it was)
	$(BIN)/python -m sr_zoo study $(if $(FULL),,--quick) $(if $(SEARCH),--search "$(SEARCH)") $(if $(TEST),--test "$(TEST)") --out study_output

lint: $(STAMP)  ## style, types, spelling, prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m tests.docs.prose

clean:  ## remove the environment and everything that can be made again
	rm -rf $(VENV) build dist demo_output study_output docs/_build docs/learn docs/gallery docs/reference/generated .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
