"""The run folder as the launcher leaves it: enough to repeat or resume the run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from harness.plan.config import Config
from harness.plan.decode import encode
from harness.plan.plan import Plan
from harness.plan.text import to_yaml
from harness.plan.zero import deepspeed_json


def run_files(config: Config, plan: Plan) -> dict[str, str]:
    """The run and its plan as files: name -> text."""
    files = {
        "run.yaml": to_yaml(encode(config)),
        "plan.json": json.dumps(plan.to_json(), indent=1),
    }
    if plan.backend.startswith("zero"):
        files["deepspeed.json"] = json.dumps(deepspeed_json(plan, config.backend), indent=1)
    return files


def write(folder: Path, files: Mapping[str, str], *, dry: bool) -> None:
    """Write files into a folder, each whole or not at all, so that several hosts may write the same ones. Dry: print them."""
    for name, text in files.items():
        if dry:
            print(f"# {folder / name}\n{text}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.{os.uname().nodename}.{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(folder / name)
