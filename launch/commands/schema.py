"""widebatch schema: the JSON schema of the run file, for editors and other programs."""

import json
from collections.abc import Sequence

from harness.config.flags import Parser
from harness.config.json_schema import json_schema
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Print the schema."""
    Parser(prog="widebatch schema", description=COMMANDS["schema"], allow_abbrev=False).parse_args(argv)
    echo(json.dumps(json_schema(), indent=1))
    return 0
