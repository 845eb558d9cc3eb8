"""widebatch dashboard PROJECT: the W&B workspace with the panels of a run, saved, or printed as JSON."""

import argparse
import json
from collections.abc import Sequence

from harness.plan.errors import UserError
from launch.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = argparse.ArgumentParser(prog="widebatch dashboard", description=COMMANDS["dashboard"], allow_abbrev=False)
    parser.add_argument("project", metavar="PROJECT", help="the project, or ENTITY/PROJECT")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace as JSON, save nothing")
    args = parser.parse_args(argv)
    entity, _, project = args.project.rpartition("/")
    try:
        from harness.watch.dashboard import as_json, save, workspace
    except ImportError as e:
        raise UserError("dashboard", f"wandb-workspaces is not installed ({e})", "pip install 'widebatch[dashboard]'") from e
    space = workspace(entity, project)
    print(json.dumps(as_json(space), indent=1, sort_keys=True) if args.dry_run else save(space))
    return 0
