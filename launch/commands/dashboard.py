"""widebatch dashboard PROJECT: the W&B workspace with the panels of a run, saved, or printed as JSON."""

import json
from collections.abc import Sequence

from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = Parser(prog="widebatch dashboard", description=COMMANDS["dashboard"], allow_abbrev=False)
    parser.add_argument("project", metavar="PROJECT", help="the project, or ENTITY/PROJECT")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace as JSON, save nothing")
    args = parser.parse_args(argv)
    entity, _, project = args.project.rpartition("/")
    from harness.watch.wandb_workspace import as_json, save, workspace

    space = workspace(entity, project)
    if not args.dry_run:
        from harness.watch.wandb import base_url, has_key

        if not has_key():
            remedy = "run `wandb login`, or set WANDB_API_KEY; --dry-run needs none"
            raise UserError("dashboard", f"there is no key for {base_url()}", remedy)
    echo(json.dumps(as_json(space), indent=1, sort_keys=True) if args.dry_run else save(space))
    return 0
