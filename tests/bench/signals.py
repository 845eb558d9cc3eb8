"""The table of signals: sent to whom, what happened, seconds, processes left, exit status: python -m tests.bench.signals.

Writes configs/results/signals.json; `markdown` is the README's table of it.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.faults.launching import Launch, run_file, wait_for
from tests.support.readmes import rewrite

OUT = Path("configs/results/signals.json")
MARKS = ("<!-- signals -->", "<!-- end of signals -->")
STOPS = ("TERM", "INT", "USR1")
WHOM = ("launcher", "launching process", "one rank", "all")
ROWS = [
    *((name, whom) for name in STOPS for whom in WHOM),
    ("TERM twice", "launcher"),
    *(("KILL", whom) for whom in WHOM[:3]),
    ("STOP", "one rank"),
]


def measure(folder: Path, name: str, whom: str) -> dict[str, Any]:
    """Send one signal to a run of two ranks, and see what comes of it."""
    folder.mkdir()
    pace = 60_000 if name == "TERM twice" else 20
    launch = Launch(run_file(folder, epochs=1_000_000, pace_ms=pace, restart={"hang_s": 5}))
    pids = launch.at_step(1 if pace > 20 else 4)
    agent = launch.agent(pids[0])
    to = {"launcher": [launch.process.pid], "launching process": [agent], "one rank": pids[1:]}.get(
        whom, [launch.process.pid, agent, *pids]
    )
    number, begin = signal.Signals[f"SIG{name.split()[0]}"], time.monotonic()
    for pid in to:
        os.kill(pid, number)
    if name == "TERM twice":
        time.sleep(1)
        launch.process.terminate()

    def outcome() -> str:
        told = launch.text()
        if "; restart 1 of 3" in told:
            return "restarted"
        if launch.process.poll() is not None and not launch.left():
            return "saved and stopped" if "stop_requested after" in told or _journal(folder) else "ended at once"
        return "goes on" if time.monotonic() - begin > 20 and launch.process.poll() is None and not _heard(launch) else ""

    what = wait_for(outcome, "an outcome")
    if what == "restarted":
        launch.at_step(1)
    row = {"signal": name, "to": whom, "what": what, "seconds": round(time.monotonic() - begin, 1)}
    if launch.process.poll() is None:
        launch.process.terminate()
        launch.wait()
        row["status"] = None
    else:
        row["status"] = launch.process.returncode
    return row | {"left": len(launch.left())}


def _heard(launch: Launch) -> bool:
    return any((b := launch.beat(rank)) and b.stopping for rank in (0, 1))


def _journal(folder: Path) -> bool:
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    return bool(json.loads(lines[-1]).get("reason") == "stop_requested")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for the README."""
    lines = ["| signal | sent to | what happened | s | processes left | exit status |", "|---|---|---|---|---|---|"]
    for row in rows:
        status = "still trains" if row["status"] is None else row["status"] if row["status"] >= 0 else f"killed by {-row['status']}"
        lines.append(f"| SIG{row['signal']} | {row['to']} | {row['what']} | {row['seconds']} | {row['left']} | {status} |")
    return "\n".join(lines)


def write_readme(rows: list[dict[str, Any]]) -> None:
    """Put the table between the two marks."""
    rewrite(MARKS, markdown(rows) + "\n")


def main() -> None:
    """Measure all rows, or those whose numbers are given."""
    root = Path(tempfile.mkdtemp(prefix="signals-"))
    wanted = [int(a) for a in sys.argv[1:]] or range(len(ROWS))
    known = {(r["signal"], r["to"]): r for r in json.loads(OUT.read_text())["rows"]} if OUT.exists() else {}
    for number in wanted:
        row = measure(root / str(number), *ROWS[number])
        known[ROWS[number]] = row
        print(row, flush=True)
        rows = [known[key] for key in ROWS if key in known]
        OUT.write_text(json.dumps({"command": "python -m tests.bench.signals", "ranks": 2, "rows": rows}, indent=1) + "\n")
    write_readme(rows)


if __name__ == "__main__":
    main()
