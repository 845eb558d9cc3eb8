"""A run and its plan as the files that lie in a run folder. Pure text, compared with golden files."""

import json

from harness.config.loader import encode
from harness.config.run_folder import DEEPSPEED, PLAN, RUN_FILE
from harness.config.schema import Config
from harness.config.yaml_text import to_yaml
from harness.plan.deepspeed_config import deepspeed_json
from harness.plan.plan import Plan


def run_files(config: Config, plan: Plan) -> dict[str, str]:
    """The texts by name: the run file, the plan, and DeepSpeed's JSON where it is the backend."""
    files = {RUN_FILE: to_yaml(encode(config)), PLAN: json.dumps(plan.to_json(), indent=1)}
    if plan.backend.startswith("zero"):
        files[DEEPSPEED] = json.dumps(deepspeed_json(plan, config.backend), indent=1)
    return files
