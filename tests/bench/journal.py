"""What the page of a run costs as the run grows longer: seconds and memory, for journals of 10^5, 10^6 and 10^7 steps.

`python -m tests.bench.journal` writes configs/results/journal.json. The journals are made of the lines that a real run wrote, with
other steps, samples and losses, and deleted again; the largest takes about 4 GB of the temporary folder. Peak memory is that of the
process of `widebatch report`, Python and its libraries included.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tests.bench.peers.__main__ import machine
from tests.support.journals import digits
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "journal.json"
STEPS = (10**5, 10**6, 10**7)
EVERY = 10
"""Steps of a window: the default of watch.every_steps."""
EVALUATED = 1000
"""Steps between evaluations."""


def template(line: bytes) -> Callable[[int, float], bytes]:
    """A line of a journal, for any other step and training loss."""
    line = line.replace(b"%", b"%%")
    for name, place in ((b'"step":', b"%d"), (b'"samples":', b"%d"), (b'"train/loss":', b"%.6f")):
        line = re.sub(re.escape(name) + rb" ?[-0-9.e]+", name + place, line, count=1)
    if b'"train/loss"' not in line:
        return lambda step, _: line % (step, 32 * step)
    return lambda step, loss: line % (step, 32 * step, loss)


def longer(short: Path, file: BinaryIO, steps: int) -> None:
    """Write the journal of a run of so many steps, in lines like those of `short`."""
    lines = short.read_bytes().splitlines(keepends=True)
    kinds = {kind: [one for one in lines if re.match(rb'{"event": ?"%s"' % kind, one)] for kind in (b"step", b"window", b"eval")}
    step, window, evaluated = (template(kinds[kind][-1]) for kind in (b"step", b"window", b"eval"))
    file.write(next(one for one in lines if b'"start"' in one[:20]))
    block: list[bytes] = []
    for number in range(1, steps + 1):
        loss = 2.3 - number / steps + (number * 7919 % 100) / 1000
        block.append(step(number, loss))
        if number % EVERY == 0:
            block.append(window(number, loss))
        if number % EVALUATED == 0:
            block.append(evaluated(number, loss))
            file.writelines(block)
            block.clear()
    file.writelines([*block, lines[-1]])


def report(run: Path, page: Path) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of `widebatch report`."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-c", REPORT, "report", str(run), "--out", str(page)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(done.stdout.rsplit("PEAK ", 1)[1])
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_s": round(cpu, 2),
        "peak_mb": round(peak / 1024, 1),
        "page_kb": round(page.stat().st_size / 1e3),
    }


REPORT = """
import sys
from launch.cli import main
main(sys.argv[1:])
print("PEAK", next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def measure(folder: Path, steps: int) -> dict[str, float]:
    """The report of a run of so many steps."""
    short = digits(folder / "short", 32) / "events.jsonl"
    run = folder / str(steps)
    run.mkdir()
    with (run / "events.jsonl").open("wb") as file:
        longer(short, file, steps)
    size = (run / "events.jsonl").stat().st_size
    found = {"steps": steps, "journal_mb": round(size / 1e6), **report(run, folder / "page.html")}
    (run / "events.jsonl").unlink()
    return found


def main() -> None:
    """Measure and write the record."""
    found = []
    for steps in [int(text) for text in sys.argv[1:]] or STEPS:
        with tempfile.TemporaryDirectory() as name:
            found.append(measure(Path(name), steps))
            print(found[-1], flush=True)
    record: dict[str, Any] = {"command": "python -m tests.bench.journal", "machine": machine(), "reports": found}
    if not sys.argv[1:]:
        OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
