"""What DeepSpeed is given: complete, nothing of it left to `auto`, and nothing that contradicts the plan."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import decode, load
from harness.config.schema import Config
from harness.engine import deepspeed_build as ops
from harness.plan.deepspeed_config import deepspeed_json
from harness.plan.plan import plan
from harness.plan.world import World
from tests.support.processes import LIMIT_S, ROOT, environ

GOLDEN = ROOT / "tests" / "golden"
RUN = {
    "recipe": {"use": "bytes_lm", "samples": 10_000},
    "batch": {"reference": 32, "per_gpu": 64, "micro": 16},
    "optim": {"name": "adamw", "lr": 0.001, "clip": 1.0},
    "scaling": {"warmup_fraction": 0.1},
    "schedule": {"epochs": 1},
}
CASES: dict[str, dict[str, Any]] = {
    "zero0": {"backend": {"name": "zero0"}},
    "zero1_bf16": {"backend": {"name": "zero1"}, "precision": "bf16"},
    "zero2_fp16": {"backend": {"name": "zero2", "offload": "optimizer", "bucket_mb": 50}, "precision": "fp16"},
    "zero3": {"backend": {"name": "zero3", "offload": "all", "deepspeed": {"zero_optimization": {"sub_group_size": 1000}}}},
}


def given(sections: dict[str, Any]) -> dict[str, Any]:
    """The JSON for a run file on 8 GPUs."""
    config: Config = decode(RUN | sections)
    return deepspeed_json(plan(config, World(8)), config.backend)


@pytest.mark.parametrize("name", list(CASES))
def test_the_json_is_as_recorded(name: str) -> None:
    assert json.dumps(given(CASES[name]), indent=1) + "\n" == (GOLDEN / f"deepspeed_{name}.json").read_text()


@pytest.mark.parametrize("name", list(CASES))
def test_its_batch_is_the_plan_s_and_nothing_is_left_open(name: str) -> None:
    tree = given(CASES[name])
    assert tree["train_batch_size"] == 512 == 8 * tree["train_micro_batch_size_per_gpu"] * tree["gradient_accumulation_steps"]
    assert '"auto"' not in json.dumps(tree)
    assert not {"optimizer", "scheduler"} & set(tree)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"train_batch_size": 64}, "backend.deepspeed.train_batch_size: is 64, but the plan says 512"),
        ({"gradient_clipping": 0.5}, "backend.deepspeed.gradient_clipping: is 0.5, but the plan says 1.0"),
        ({"bf16": {"enabled": True}}, "backend.deepspeed.bf16.enabled: is True, but the plan says False"),
        ({"zero_optimization": {"stage": 3}}, "backend.deepspeed.zero_optimization.stage: is 3, but the plan says 2"),
        ({"zero_optimization": 2}, "backend.deepspeed.zero_optimization: is 2, but the plan says"),
        ({"train_batch_size": {"a": 1}}, "backend.deepspeed.train_batch_size.a: is 1, but the plan has 512"),
        ({"scheduler": {"type": "WarmupLR"}}, "backend.deepspeed.scheduler.type: is 'WarmupLR', but the plan sets it"),
        ({"optimizer": {"params": {"lr": 1}}}, "backend.deepspeed.optimizer.params.lr: is 1, but the plan sets it"),
        (
            {"zero_optimization": {"reduce_bucket_size": "auto"}},
            "reduce_bucket_size: is 'auto', and there is nothing to fill it in",
        ),
    ],
)
def test_a_key_that_the_plan_owns_is_refused_with_both_values(own: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as e:
        given({"backend": {"name": "zero2", "deepspeed": own}})
    assert said in str(e.value)


def test_a_user_s_own_json_file_is_read_into_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"activation_checkpointing": {"cpu_checkpointing": True}}))
    (tmp_path / "run.yaml").write_text(json.dumps(RUN | {"backend": {"name": "zero2", "deepspeed": "own.json"}}))
    config = load(tmp_path / "run.yaml")
    tree = deepspeed_json(plan(config, World(8)), config.backend)
    assert tree["activation_checkpointing"] == {"cpu_checkpointing": True}
    with pytest.raises(UserError, match=r"backend.deepspeed: 'none.json' cannot be read: .*; give a JSON file, or the keys"):
        load(tmp_path / "run.yaml", {"backend.deepspeed": "none.json"})


def test_environments_of_one_version_do_not_build_into_one_folder(tmp_path: Path) -> None:
    """DeepSpeed's operator was built anew, for half a minute, whenever the other environment had started in between."""
    (tmp_path / "venv").symlink_to(sys.prefix)
    code = "from harness.engine.deepspeed_build import cache_folder; print(cache_folder())"
    shown = [
        subprocess.run([python, "-c", code], env=environ(), capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout
        for python in (sys.executable, sys.executable, str(tmp_path / "venv" / "bin" / Path(sys.executable).name))
    ]
    assert shown[0] == shown[1] != shown[2]


def test_an_operator_that_cannot_be_compiled_is_one_line_that_says_what_is_missing(tmp_path: Path) -> None:
    env = environ() | {"XDG_CACHE_HOME": str(tmp_path), "CXX": "/bin/false"}
    argv = [sys.executable, "-m", "harness.engine.deepspeed_build"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    begin, *_, error = done.stderr.splitlines()
    assert done.returncode == 2
    assert begin.startswith(f"compiling DeepSpeed's CPU operator into {tmp_path}/widebatch/ops-")
    assert error.startswith("error: backend.name: DeepSpeed's CPU operator cannot be compiled (")
    assert error.endswith("compiler.log; install a C++ compiler such as g++, or use ddp or fsdp")
    assert "Traceback" not in done.stderr


def test_a_compiler_at_work_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ops, "PROGRESS_S", 0.001)
    monkeypatch.setattr(ops, "say", said.append)
    with ops._progress(shown=True):
        while len(said) < 2:
            pass
    assert said[0] == "still compiling after 0 s"


@pytest.mark.slow
def test_a_lock_left_by_a_killed_build_is_removed_and_nothing_hangs(tmp_path: Path) -> None:
    """torch's builder would wait for it for ever. In a copy of the cache: in the cache itself, ranks of other tests remove it."""
    code = "from harness.engine.deepspeed_build import build_cpu_ops, cache_folder; build_cpu_ops(); print(cache_folder())"
    start, env = [sys.executable, "-c", code], environ() | {"DS_ACCELERATOR": "cpu"}
    first = subprocess.run(start, env=env, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    built = Path(first.stdout.splitlines()[-1])
    folder = Path(shutil.copytree(built, tmp_path / "widebatch" / built.name))
    env |= {"XDG_CACHE_HOME": str(tmp_path)}
    lock = next(folder.glob("*/*.so")).parent / "lock"
    lock.touch()
    again = subprocess.run(start, env=env, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert f"removing {lock}, left by a build that was killed" in again.stderr
    assert not lock.exists()
