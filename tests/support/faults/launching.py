"""A run under `widebatch launch` in a test: started, waited for, its processes found."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.supervision.heartbeat import Beat, read
from harness.supervision.launch_env import VARIABLE, Launched, launched
from harness.supervision.rank_monitor import process_state
from tests.support.processes import LIMIT_S, ROOT, environ


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S, look_s: float = 0.01) -> Any:
    """What `condition` gives as soon as it is true; it is asked every `look_s`."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {limit_s:.0f} s"
        time.sleep(look_s)
    return found


def run_file(folder: Path, *, epochs: int = 6, size: int = 64, faults: str = "", pace_ms: float = 0.0, **sections: Any) -> Path:
    """A run of 8 samples a step, a checkpoint every 3 steps, from a folder of its own."""
    tree: dict[str, Any] = {
        "recipe": {
            "use": f"{ROOT}/tests/support/faults/recipe.py:Traced",
            "log": str(folder),
            "size": size,
            "faults": faults,
            "pace_ms": pace_ms,
        },
        "batch": {"reference": 8, "total": 8, "micro": 4},
        "optim": {"lr": 0.01, "momentum": 0.9},
        "scaling": {"rule": "none"},
        "schedule": {"epochs": epochs},
        "checkpoint": {"every_samples": 24},
        "watch": {"wandb": "off", "every_steps": 2, "noise_scale": False, "use": [f"{ROOT}/tests/support/faults/recipe.py:Starts"]},
        "run": {"dir": str(folder / "run")},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    path = folder / "run.yaml"
    path.write_text(json.dumps(tree))
    return path


def told(pid: int) -> Launched | None:
    """What its launcher told a process."""
    try:
        environ = dict(v.partition("=")[::2] for v in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"))
    except OSError:
        return None
    return launched(environ)


class Launch:
    """`widebatch launch` on CPU ranks, in the background; `before`: a command that becomes it."""

    def __init__(
        self, path: Path, ranks: int = 2, *flags: str, env: dict[str, str] | None = None, before: Sequence[str] = ()
    ) -> None:
        self.folder, self.ranks, self.began_s = path.parent, ranks, time.monotonic()
        self.output = path.parent / "output.txt"
        argv = [*before, sys.executable, "-m", "launch", "launch", str(path), "--gpus", "0", "--procs", str(ranks), *flags]
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                argv, cwd=path.parent, env=environ() | (env or {}), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def beat(self, rank: int) -> Beat | None:
        """The pulse of a rank that is alive, of this launch."""
        for pid in self.left():
            by = told(pid)
            beat = read(by.heartbeat(rank)) if by else None
            if beat and beat.pid == pid and process_state(pid) not in ("", "Z"):
                return beat
        return None

    def at_step(self, step: int, limit_s: float = LIMIT_S) -> list[int]:
        """The pids of all ranks, once each of them is at `step`, or further."""

        def there() -> list[int]:
            assert self.process.poll() is None, self.text()
            beats = [self.beat(rank) for rank in range(self.ranks)]
            return [b.pid for b in beats if b] if all(b and b.step >= step for b in beats) else []

        pids: list[int] = wait_for(there, f"step {step}", limit_s)
        return pids

    def agent(self, pid: int) -> int:
        """The process that starts the ranks, of which this is one."""
        while (parent := int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])) != self.process.pid:
            pid = parent
        return pid

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """The launcher's exit status."""
        return self.process.wait(limit_s)

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def left(self) -> list[int]:
        """Processes of this launch that are still there, the launcher left out."""
        mark, found = f'{VARIABLE}={{"launcher": {self.process.pid},'.encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def argv(self) -> bytes:
        """The command lines of all its processes."""
        found = b""
        for pid in [self.process.pid, *self.left()]:
            with suppress(OSError):  # gone meanwhile
                found += Path(f"/proc/{pid}/cmdline").read_bytes()
        return found

    def end(self) -> None:
        """Leave nothing behind, whatever the test found."""
        launcher = [self.process.pid] if self.process.poll() is None else []
        for pid in [*launcher, *self.left()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def journal(self, event: str) -> list[dict[str, Any]]:
        """The journal's lines of one kind."""
        lines = [json.loads(line) for line in (self.folder / "run" / "events.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def losses(self) -> dict[int, float]:
        """The loss of each step, as it was told last."""
        return {step["step"]: step["train/loss"] for step in self.journal("step")}
