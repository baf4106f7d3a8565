# make run    set up what is needed and run the main job: reasoning tasks through the whole topology
# make test   set up and run every test
# make check  what CI runs: lint, types, tests
# make bench  every bench: tables, JSON and plots in bench/results

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: run test check lint bench clean

run: $(VENV)/.run
	$(BIN)/rollmq tasks reasoning-gym \
	  --names gcd,lcm,chain_sum,basic_arithmetic,number_sorting,spell_backward \
	  --count 120 --seed 7 --out out-tasks.jsonl
	$(BIN)/rollmq run topology.yaml --tasks out-tasks.jsonl --group-size 8 --out out --overwrite

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

bench: $(VENV)/.bench
	$(BIN)/python -m bench

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[reasoning,tasks]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[reasoning,tasks,test]'
	touch $@ $(VENV)/.run

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[reasoning,tasks,bench]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) out out-tasks.jsonl run build *.egg-info
