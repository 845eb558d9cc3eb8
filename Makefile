# Everything runs in .venv, which each target creates and fills when pyproject.toml or constraints.txt is newer than it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-cluster test-nvme test-container check bench bench-launch bench-rules lab soak clean

demo: .venv/.base  ## Train a real model on real data in two processes, with the plan, a live line and the result.
	$(BIN)/widebatch launch configs/digits.yaml --gpus 0 --procs 2

test: .venv/.dev  ## All tests but the long ones, about 11 minutes on 2 cores.
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: test  ## The long ones too: every backend's checkpoints on every world, compiled blocks.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-cluster: .venv/.dev  ## Minutes on a real Slurm cluster and on several hosts: as root on an idle machine.
	$(BIN)/python -m pytest -m cluster

test-nvme: .venv/.dev  ## Optimizer state on a local disk; DeepSpeed compiles for minutes the first time, and wants libaio-dev.
	$(BIN)/python -m pytest -m nvme

bench-launch: .venv/.dev  ## One launch of each kind beside one process, a job displaced; rewrites their record. As root, after test-container.
	$(BIN)/python -m tests.bench_launch

check: .venv/.dev  ## Format, lint, types, and known vulnerabilities where the registry answers.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/entrypoint docker/stop-ranks .ci/run
	$(BIN)/python -m tests.audit

test-container: .venv/.dev  ## The image, built with buildah and run with podman: as root on Debian, see tests/container.py.
	$(BIN)/python -m tests.container

bench: .venv-peers/.made  ## A step of ours, of other harnesses and of the loop by hand; 20 minutes on 2 cores.
	.venv-peers/bin/python -m tests.peers

bench-rules: .venv/.base  ## Digits at k = 1, 4, 16 with and without the linear rule, 3 seeds; rewrites the table's numbers in configs/results.
	$(BIN)/python -m tests.bench_rules

lab: .venv/.base  ## Sweeps on real data, three seeds, about an hour of one core; rewrites configs/results/sweep_*.json.
	$(BIN)/python -m tests.bench_lab

soak: .venv/.dev  ## The long counts: 1,000 damaged checkpoints, 100 full disks, 200 killed saves, 200 kills, 100 SIGTERMs, lost hosts; rewrites their records.
	$(BIN)/python -m tests.soak_checkpoints
	$(BIN)/python -m tests.soak_kills
	$(BIN)/python -m tests.soak_sigterm
	$(BIN)/python -m tests.bench_signals
	$(BIN)/python -m tests.soak_hosts --write

clean:  ## Remove what the targets above made.
	rm -rf .venv .venv-peers build dist .mypy_cache .ruff_cache .hypothesis *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.base: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/.dev: .venv/.base
	$(PIP) --editable '.[dev]'
	touch $@

# The peers see the packages of .venv, so that torch is the same, and bring the rest with them.
.venv-peers/.made: .venv/.dev
	$(PYTHON) -m venv .venv-peers
	echo "import site; site.addsitedir('$(CURDIR)/$$(ls -d .venv/lib/python3*/site-packages)')" > $$(ls -d .venv-peers/lib/python3*/site-packages)/base.pth
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt 'lightning>=2.5'
	touch $@
