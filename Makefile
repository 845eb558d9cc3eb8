# Everything runs in .venv, which each target creates and fills when pyproject.toml or constraints.txt is newer than it.
PYTHON ?= python3
BIN := .venv/bin

# $(call install,ENVIRONMENT,WHAT): of what pip says its errors are shown, and all of it where it fails.
define install
@echo "installing into $(1), the first time for minutes (pip's words: $(1)/pip.log)"
@$(1)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(2) >$(1)/pip.log 2>&1 \
	|| { cat $(1)/pip.log >&2; exit 1; }
@grep '^ERROR' $(1)/pip.log >&2 || true
@touch $@
endef

.PHONY: demo test test-all test-base test-cluster test-nvme test-container test-gpu gpu-wheels check docs bench bench-gpu bench-launch bench-rules lab soak clean

demo: .venv/.base  ## Train a real model on real data in two processes, with the plan, a live line and the result.
	$(BIN)/widebatch launch configs/digits.yaml --gpus 0 --procs 2

test: .venv/.ops  ## All tests but the long ones, about 15 minutes on 2 cores.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: test  ## The long ones too: every backend's checkpoints on every world, compiled blocks.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

test-base: .venv/.dev .venv-base/.ops  ## Three minutes: demo, README's commands and every import from the wheel, with nothing but the base dependencies.
	$(BIN)/python -m pytest -m base

test-cluster: .venv/.ops  ## Minutes on a real Slurm cluster and on several hosts: as root on an idle machine.
	$(BIN)/python -m pytest -m cluster

test-nvme: .venv/.ops  ## Optimizer state on a local disk; DeepSpeed compiles for minutes the first time, and wants libaio-dev.
	$(BIN)/python -m pytest -m nvme

bench-launch: .venv/.ops  ## One launch of each kind beside one process, a job displaced; rewrites their record. As root, after test-container.
	$(BIN)/python -m tests.bench.launch

gpu-wheels: .venv/.dev  ## Fill build/gpu-wheels with what a GPU machine with torch but no network needs.
	$(BIN)/python -m tests.support.gpu_wheels

test-gpu: .venv-gpu/.made  ## The tests that need a GPU, with the torch that is installed; writes configs/results/gpu_tests.json.
	.venv-gpu/bin/python -m tests.support.gpu_tests

bench-gpu: .venv-gpu/.made  ## Tokens a second, MFU and checkpoint stalls on one GPU; writes configs/results/gpu.json.
	.venv-gpu/bin/python -m tests.bench.gpu

check: .venv/.dev  ## Format, lint, types, the page of the public names, and known vulnerabilities where the registry answers.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/entrypoint docker/stop-ranks .ci/run
	$(BIN)/python -m tests.support.api_page
	$(BIN)/python -m tests.support.audit

docs: .venv/.dev  ## The page of the public names, from their docstrings: build/docs/harness.html.
	$(BIN)/python -m tests.support.api_page

test-container: .venv/.dev  ## The image, built with buildah and run with podman: as root on Debian, see tests/support/container.py.
	$(BIN)/python -m tests.support.container

bench: .venv-peers/.made  ## A step of ours, of other harnesses and of the loop by hand; 20 minutes on 2 cores.
	.venv-peers/bin/python -m tests.bench.peers

bench-rules: .venv/.base  ## Digits at k = 1, 4, 16 with and without the linear rule, 3 seeds; rewrites the table's numbers in configs/results.
	$(BIN)/python -m tests.bench.rules

lab: .venv/.base  ## Sweeps on real data, three seeds, about an hour of one core; rewrites configs/results/sweep_*.json.
	$(BIN)/python -m tests.bench.lab

soak: .venv/.ops  ## The long counts: 1,000 damaged checkpoints, 100 full disks, 200 killed saves, 200 kills, 50 recoveries, 100 SIGTERMs, lost hosts; rewrites their records.
	$(BIN)/python -m tests.soak.checkpoints
	$(BIN)/python -m tests.soak.kills
	$(BIN)/python -m tests.soak.survivors
	$(BIN)/python -m tests.soak.spares
	$(BIN)/python -m tests.soak.sigterm
	$(BIN)/python -m tests.bench.signals
	$(BIN)/python -m tests.soak.hosts --write

clean:  ## Remove what the targets above made.
	rm -rf .venv .venv-base .venv-gpu .venv-peers build dist .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.base: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.venv,--editable .)

.venv/.dev: .venv/.base
	$(call install,.venv,--editable '.[dev]')

# DeepSpeed's operator for CPU ranks is compiled here, once and with progress, and not in the middle of a test.
.venv/.ops: .venv/.dev
	@$(BIN)/python -m harness.engine.deepspeed_build
	@touch $@

.venv-base/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-base
	$(call install,.venv-base,--editable .)

.venv-base/.ops: .venv-base/.made
	@.venv-base/bin/python -m harness.engine.deepspeed_build
	@touch $@

# A GPU machine has a torch for its driver: it is kept. Wheels come from build/gpu-wheels where that was filled, else from pip's index.
.venv-gpu/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	@.venv-gpu/bin/python -c "import torch" || { echo "error: $(PYTHON) has no torch: install the one for this machine's driver" >&2; exit 2; }
	grep -v '^torch==' constraints.txt > .venv-gpu/constraints.txt
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check --constraint .venv-gpu/constraints.txt \
		$(if $(wildcard build/gpu-wheels/*.whl),--no-index --find-links build/gpu-wheels --no-build-isolation) hatchling setuptools
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check --constraint .venv-gpu/constraints.txt --no-build-isolation \
		$(if $(wildcard build/gpu-wheels/*.whl),--no-index --find-links build/gpu-wheels) --editable . pytest
	@touch $@

# The peers see the packages of .venv, so that torch is the same, and bring the rest with them.
.venv-peers/.made: .venv/.dev
	$(PYTHON) -m venv .venv-peers
	echo "import site; site.addsitedir('$(CURDIR)/$$(ls -d .venv/lib/python3*/site-packages)')" > $$(ls -d .venv-peers/lib/python3*/site-packages)/base.pth
	$(call install,.venv-peers,'lightning>=2.5')
