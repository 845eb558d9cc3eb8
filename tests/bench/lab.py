"""The laboratory's experiments, each a `widebatch sweep` on real data with three seeds; records in configs/results/sweep_NAME.json.

`python -m tests.bench.lab [NAME ...]` runs those named, or all, in runs/lab, where what is done is kept: an hour of one core.
The tables go to the README by themselves.

fashion   Goyal's shape: does linear hold where a kept rate fails, with and without warm-up, and where does it break
critical  steps to a loss at seven batches: the critical batch by fit, beside the measured noise scale
adam      a byte language model with Adam at k = 4, 16, 64
digits    the rules on scikit-learn's digits, up to the whole data set as one batch
beginners batch 32 at lr 0.001, 128 at 0.01, 512 at 0.1: the three examples that no rule connects
measured  the rules that use a measured noise scale (adascale, noise) beside linear and sqrt, on digits
surge     rule surge beside sqrt, on digits with AdamW
adascale  accuracy reached where linear fails, samples spent; and what as many samples give without it
"""

import json
import platform
import shlex
import sys
from pathlib import Path

import torch

from harness.analysis.sweep_results import from_json, table, verdict
from launch.cli import main as widebatch
from tests.support.processes import ROOT
from tests.support.readmes import rewrite

RESULTS = ROOT / "configs" / "results"
MARKS = ("<!-- sweeps -->", "<!-- end of sweeps -->")
ONCE = "--eval.every_epochs 30 --checkpoint.every_epochs 30"
NOISE_SCALE = 75
"""Of digits in samples: the middle of what `python -m tests.bench.noise` measures by passes from epoch 2 to 8."""
EXPERIMENTS = {
    "digits": "digits.yaml --batches 32,128,512,1437 --rules none,linear+scaling.warmup_epochs=0,linear,sqrt "
    f"--metric eval/accuracy_pct {ONCE}",
    "beginners": "digits.yaml --batches 32,128,512 --rules none,linear,none+optim.lr=0.01,none+optim.lr=0.1 --optim.lr 0.001 "
    f"--metric eval/accuracy_pct {ONCE}",
    "measured": f"digits.yaml --batches 32,128,512 --rules linear,sqrt,adascale,noise+scaling.noise_scale={NOISE_SCALE} "
    f"--batch.micro 16 --metric eval/loss {ONCE}",
    "surge": f"digits.yaml --batches 32,128,512 --rules sqrt,surge+scaling.noise_scale={NOISE_SCALE} --optim.name adamw "
    f"--optim.lr 0.004 --optim.momentum null --batch.micro 16 --metric eval/loss {ONCE}",
    "critical": "digits.yaml --batches 16..1024 --rules none,sqrt,linear --target eval/loss<=0.2 --batch.micro 16 "
    "--schedule.epochs 40 --schedule.shape constant --scaling.warmup_epochs 1 --eval.every_samples 359 "
    "--checkpoint.every_epochs 40",
    "adascale": "fashion_mlp.yaml --batches 64,1024,4096 --metric eval/accuracy_pct "
    "--rules linear,sqrt,adascale+batch.micro=64,sqrt+schedule.epochs=22",
    "fashion": "fashion_mlp.yaml --batches 64,256,1024,4096 --rules none,linear+scaling.warmup_epochs=0,linear,sqrt "
    "--metric eval/accuracy_pct",
    "adam": "bytes_lm.yaml --batches 4,16,64,256 --rules linear,sqrt,adam+scaling.betas=half_life_both,"
    "adam+scaling.betas=half_life_both+scaling.weight_decay=keep --batch.reference 4 "
    "--recipe.width 48 --recipe.depth 2 --recipe.heads 2 --recipe.context 32 --schedule.samples 48000 "
    "--scaling.warmup_samples 8000 --eval.every_samples 48000 --checkpoint.every_samples 48000",
}


def run(name: str) -> int:
    """One experiment; its exit status. The record is the sweep's own, with the machine."""
    out = Path("runs") / "lab" / name
    file, *flags = shlex.split(EXPERIMENTS[name].replace("<=", "'<='"))
    status = widebatch(
        ["sweep", str(Path("configs") / file), *flags, "--seeds", "3", "--chain", "6", "--jobs", "2", "--out", str(out)]
    )
    if status == 0:
        record = json.loads((out / "sweep.json").read_text())
        machine = f"{platform.machine()}, CPU, torch {torch.__version__}"
        text = json.dumps({"command": f"python -m tests.bench.lab {name}", "sweep": record.pop("command"), "machine": machine})
        body = json.dumps(record, indent=None, separators=(",", ": "))
        (RESULTS / f"sweep_{name}.json").write_text(text[:-1] + ",\n" + body[1:].replace('{"rule"', '\n{"rule"') + "\n")
    return status


def shown() -> str:
    """The README's part about all records that there are: the command, the table, the verdict."""
    parts = []
    for path in sorted(RESULTS.glob("sweep_*.json")):
        record = json.loads(path.read_text())
        results = from_json(record)
        parts.append(f"`{record['sweep']}`:\n\n```text\n{table(results)}\n\n" + "\n".join(verdict(results)) + "\n```\n")
    return "\n".join(parts)


def write_readme() -> None:
    """Put `shown` between the two marks."""
    rewrite(MARKS, shown())


def main() -> None:
    """Run the experiments that the command line names."""
    for name in sys.argv[1:] or list(EXPERIMENTS):
        status = run(name)
        if status:
            sys.exit(status)
        write_readme()


if __name__ == "__main__":
    main()
