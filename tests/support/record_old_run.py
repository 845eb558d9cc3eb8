"""Records the run of version 0.1 in tests/old: `git worktree add DIR 9f66ae4`, then `python -m tests.support.record_old_run DIR`.

Two runs of that version's own code with one thread: one to the end, whose losses are kept, and one that stops at step 10, whose
folder is kept to be resumed.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from harness.config.run_folder import RunFolder
from tests.support.processes import ROOT, run_command

OUT = ROOT / "tests" / "old"
RUN_FILE = """\
recipe: {use: digits, width: 2, dropout: 0.1}
batch: {reference: 128, total: 256}
optim: {name: adamw, lr: 0.002, ema: 0.99}
scaling: {warmup_samples: 575}
schedule: {epochs: 4, shape: cosine}
eval: {every_epochs: 2}
watch: {every_steps: 4, wandb: "off"}
"""


def machine() -> dict[str, str]:
    """What the last bits of a sum depend on: torch's version, its kernels, and the kind of CPU."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    cpu = " ".join(known.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping", "flags", "cache size"))
    kernels = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "kernels": kernels, "cpu": hashlib.sha256(cpu.encode()).hexdigest()[:16]}


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """The line of each optimizer step in a run's journal, by step."""
    lines = map(json.loads, RunFolder(folder).journal.read_text().splitlines())
    return {line["step"]: line for line in lines if line["event"] == "step"}


def main() -> None:
    """Rewrite tests/old/run and tests/old/expected.json."""
    code = f"import sys, runpy; sys.path.insert(0, {sys.argv[1]!r}); sys.argv[0] = 'launch'; runpy.run_module('launch')"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old.yaml").write_text(RUN_FILE)
        train = [sys.executable, "-P", "-c", code, "train", "old.yaml"]
        run_command([*train, "--run.dir", "run", "--run.stop_after_steps", "10"], folder)
        run_command([*train, "--run.dir", "whole"], folder)
        shutil.rmtree(OUT / "run", ignore_errors=True)
        shutil.copytree(folder / "run", OUT / "run", ignore=shutil.ignore_patterns("lock"))
        wanted = ("samples", "train/loss", "train/grad_norm", "train/lr")
        whole = [{key: line[key] for key in wanted} for line in steps(folder / "whole").values()]
    (OUT / "expected.json").write_text(json.dumps({"machine": machine(), "steps": whole}, indent=1) + "\n")


if __name__ == "__main__":
    main()
