"""What an outage of W&B costs a run, by kind: `python -m tests.bench.wandb` writes configs/results/wandb.json.

Seconds that the start and the end took, and the 99th percentile of the training thread's call for a point, in milliseconds.
"""

import json
import socket
import tempfile
from pathlib import Path

from tests.dist.test_wandb import feed, losses, sync, told
from tests.support.processes import ROOT
from tests.support.wandb_server import Server

OUT = ROOT / "configs" / "results" / "wandb.json"


def measure(kind: str) -> dict[str, float | str | bool]:
    """One run through one kind of outage, and whether all its points are there after `wandb sync`."""
    with tempfile.TemporaryDirectory() as name:
        folder, away, whole = Path(name), Server(), Server()
        url, half = away.url, folder / "half"
        if kind == "closed port":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{free.getsockname()[1]}"
        away.mute = kind == "black hole"
        away.fails = int(kind) if kind.isdigit() else None
        process = feed(folder, url, *([str(half)] if kind == "dies half-way" else []))
        if kind == "dies half-way":
            while not Path(f"{half}.reached").exists() and process.poll() is None:
                pass
            away.mute = True
            half.touch()
        times, _ = told(process)
        if kind == "none":
            whole = away
        else:
            sync(folder, whole)
        return {"outage": kind, **{k: round(v, 3) for k, v in times.items()}, "nothing_lost": len(losses(whole, folder)) == 200}


def main() -> None:
    """Run all and write the record."""
    rows = [measure(kind) for kind in ("none", "closed port", "black hole", "429", "500", "dies half-way")]
    OUT.write_text(json.dumps({"command": "python -m tests.bench.wandb", "rows": rows}, indent=1))
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
