# `make demo` and `make test` set up everything in .venv first, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO_RUN := runs/demo

.PHONY: help install demo test lint soak site clean

help:
	@echo "make demo   text -> tokenizer -> shards -> training -> three samples and a report, in $(DEMO_RUN)"
	@echo "make test   lint and the test suite"
	@echo "make lint   ruff, mypy and the direction of imports"
	@echo "make soak   the long versions of the crash and race tests"
	@echo "make site   the documentation as a site, in site/; a broken link is an error"
	@echo "make clean  delete .venv and what tests left behind; runs stay"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,dask,dedup,eval,finetune,judge,serve,trackers]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/malmoi train --config configs/demo.yaml --run $(DEMO_RUN)
	@$(BIN)/malmoi report $(DEMO_RUN)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not soak" --numprocesses 2 --durations=15

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak

site: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

$(VENV)/installed-docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
