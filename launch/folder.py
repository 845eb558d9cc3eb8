"""The run folder as the launcher leaves it: enough to repeat or resume the run."""

import json
from pathlib import Path

import yaml

from harness.plan.config import Config
from harness.plan.decode import encode
from harness.plan.plan import Plan
from harness.plan.world import World
from harness.plan.zero import deepspeed_json
from launch.command import Command, accelerate_file, worker_command


def write_folder(config: Config, plan: Plan, world: World, folder: Path, python: str, *, dry: bool) -> Command:
    """Write run.yaml, plan.json and accelerate.yaml (dry: print them instead); the command that runs the folder."""
    files = {
        "run.yaml": yaml.safe_dump(encode(config), sort_keys=False),
        "plan.json": json.dumps(plan.to_json(), indent=1),
        "accelerate.yaml": accelerate_file(plan, world),
    }
    if plan.backend.startswith("zero"):
        files["deepspeed.json"] = json.dumps(deepspeed_json(plan, config.backend), indent=1)
    for name, text in files.items():
        if dry:
            print(f"# {folder / name}\n{text}")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return worker_command(python, str(folder), world)
