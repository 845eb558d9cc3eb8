"""Worker of test_verify_script: runs variants of a script one after another under the probe, and writes down what each did."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from harness.supervision.exit_codes import end_orderly
from harness.tools.script_probe import see

STEPS = 4

if __name__ == "__main__":
    folder, script, *names = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    steps = STEPS * (2 if "RANK" not in os.environ else 1)
    for name in names:
        seen = see(script, [name], steps)
        (Path(folder) / f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps([asdict(step) for step in seen]))
    end_orderly(0)
