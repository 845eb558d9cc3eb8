"""widebatch find-batch RUN.yaml: the micro-batch that fits and is fastest, by real steps on the user's own recipe."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from harness.analysis.micro_batch_search import Tried, agreed, candidates, fastest, next_trial
from harness.analysis.sweep_results import aligned
from harness.analysis.text_plot import Curve, Panel
from harness.config.errors import UserError
from harness.config.flags import add_settings
from harness.config.schema import Config
from harness.plan.batch import split_batch
from harness.plan.token_units import sample_tokens
from harness.plan.world import World
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import refuse_link, write_own
from launch.lab.results import LabResults, run_file
from launch.lab.trials import places, trial_folder
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path
from launch.options.run_argument import read_run
from launch.options.run_options import add_world, asked_world, run_parser
from launch.processes.command import Command, device_environ
from launch.processes.job_pool import Job, last_line, run_jobs
from launch.processes.spawn import gpu_count

MOST_PASSES = 4
"""Passes of a trial's step: further passes take no more memory, and the same time each."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|TiB)")
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = run_parser("find-batch", COMMANDS["find-batch"])
    add_world(parser)
    parser.add_argument(
        "--memory", help="memory a rank may use, such as 2GiB: resident memory on a CPU (required there), device memory on a GPU"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="time to measure the rate of each micro-batch (default 2)")
    parser.add_argument(
        "--out",
        type=local_path("--out"),
        help="folder of the search (default runs/NAME-find-batch); trials done there before are reused",
    )
    predict = "no trials: what a rank of the planned world would use, by micro-batch, from shapes alone"
    parser.add_argument("--predict", action="store_true", help=predict)
    add_settings(parser)
    args, _, config = read_run(parser, argv)
    world = asked_world(args)
    limit = size(args.memory) if args.memory else None
    share = split_batch(replace(config.batch, micro="auto"), world, sample_tokens(config.recipe)).micro_batch
    if args.predict:
        return _predict(config, world, share, limit)
    _check(args, world, limit)
    out: Path = args.out or Path("runs") / f"{args.run.stem}-find-batch"
    _keep(config, world, limit, out)
    tried = search(config, world, share, limit, args.seconds, out)
    return _finish(config, world, share, tried, out) if tried is not None else 1


def size(text: str) -> int:
    """Bytes of a size such as 2GiB. Raises UserError."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UserError("--memory", f"is {text!r}", "give a number and KiB, MiB, GiB or TiB, such as 2GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _check(args: argparse.Namespace, world: World, limit: int | None) -> None:
    if world.device == "cpu" and limit is None:
        raise UserError("--memory", "missing, and is required for CPU ranks", "give what a rank may use, such as 2GiB")
    if world.device == "gpu" and world.size > gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES")):
        raise UserError("--gpus", f"{world.size} asked for, more than are here", "ask for fewer, or use --predict")
    if world.nodes > 1:
        raise UserError("--nodes", f"is {world.nodes}, but trials run on this machine only", "leave it out, or use --predict")
    if not args.seconds > 0:
        raise UserError("--seconds", f"is {args.seconds}", "give a time above 0")


def _keep(config: Config, world: World, limit: int | None, out: Path) -> None:
    """Write what is searched for; raises UserError where the folder holds another search."""
    path, text = out / "search.yaml", run_file(config, f"find-batch on {world.size} {world.device} ranks, limit {limit} bytes each")
    if path.exists() and path.read_text() != text:
        raise UserError("--out", f"{out} holds a search of another run file, world or limit", "give another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    write_own(path, text)


def search(config: Config, world: World, share: int, limit: int | None, seconds: float, out: Path) -> list[Tried] | None:
    """All trials, those of an earlier call included; None if it was stopped before the end."""
    from harness.watch.progress import series

    found: dict[int, Tried] = {}
    expected = len(bin(share)) + 2
    with series("find-batch", expected) as told:
        while (micro := next_trial(share, {m: t.fits for m, t in found.items()})) is not None:
            folder = trial_folder(out, f"micro-{micro}")
            if not (folder / "done").exists() and not _try(out, folder, world, micro, share, limit, seconds):
                return None
            found[micro] = _read(folder, micro, world.size)
            told(_line(found[micro], share))
    return [found[m] for m in sorted(found)]


def _try(out: Path, folder: Path, world: World, micro: int, share: int, limit: int | None, seconds: float) -> bool:
    """One trial in fresh processes; whether it was let come to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    refuse_link(folder / "torchrun", "--out")
    for old in folder.glob("rank-*.json"):
        old.unlink()
    passes = min(share // micro, MOST_PASSES)
    argv = [sys.executable]
    if world.size > 1:
        argv += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={world.size}",
            "--max-restarts=0",
            "--log-dir",
            f"{folder}/torchrun",
        ]
    argv += [
        "-m",
        "harness.tools.batch_trial",
        str((out / "search.yaml").resolve()),
        "--micro",
        str(micro),
        "--passes",
        str(passes),
    ]
    argv += ["--seconds", str(seconds), "--out", str(folder), *(["--memory", str(limit)] if limit else [])]
    log = folder / "trial.log"
    job = Job(f"micro-{micro}", Command(tuple(argv), device_environ(world)), log)
    statuses: list[int] = []

    def ended(job: Job, status: int) -> bool:
        statuses.append(status)
        return True

    everything = run_jobs([job], 1, ended, places(1))
    told = [json.loads(p.read_text()) for p in folder.glob("rank-*.json")]
    if any(t["fits"] is None for t in told):
        raise UserError("trial", f"micro-batch {micro}: {next(t['problem'] for t in told if t['fits'] is None)}", f"see {log}")
    if statuses and statuses[0] in (128 + 15, 128 + 2):
        return False
    if not told and statuses and statuses[0] != 128 + 9:
        last = last_line(log)
        raise UserError("trial", f"micro-batch {micro} ended with status {statuses[0]}: {last}", f"see {log}")
    write_own(folder / "done", "")
    return everything


def _read(folder: Path, micro: int, ranks: int) -> Tried:
    files = [folder / f"rank-{n}.json" for n in range(ranks)]
    return agreed(micro, [json.loads(f.read_text()) if f.exists() else None for f in files])


def _line(t: Tried, share: int) -> str:
    if not t.fits:
        return f"micro-batch {t.micro:,} does not fit ({t.problem})"
    return f"micro-batch {t.micro:,} x {share // t.micro}: {(t.peak_bytes or 0) / 2**30:.2f} GiB, {t.samples_per_s:,.0f} samples/s"


def table(tried: Sequence[Tried], share: int, chosen: Tried | None) -> str:
    """The trials: micro-batch, accumulation that keeps the global batch, peak of the fullest rank, rate of all ranks."""
    rows = [["micro_batch", "accumulate", "peak GiB", "samples/s", ""]]
    for t in tried:
        peak, rate = f"{(t.peak_bytes or 0) / 2**30:.3f}" if t.fits else "-", f"{t.samples_per_s or 0:,.0f}" if t.fits else "-"
        note = "fastest" if t == chosen else "" if t.fits else "does not fit"
        rows.append([f"{t.micro:,}", f"{share // t.micro:,}", peak, rate, note])
    return aligned(rows)


def _finish(config: Config, world: World, share: int, tried: Sequence[Tried], out: Path) -> int:
    results, chosen = LabResults(out, "find-batch"), fastest(tried)
    text = table(tried, share, chosen)
    echo("\n" + text)
    record = {"ranks": world.size, "device": world.device, "share": share, "trials": [asdict(t) for t in tried]}
    results.record({**record, "chosen": chosen and chosen.micro})
    if chosen is None:
        echo("\nnot even one sample fits: shard the model (backend.name fsdp or zero3), recompute activations, or give more memory")
        return 1
    largest = max(t.micro for t in tried if t.fits)
    whole = ", the rank's whole share" if largest == share else ""
    echo(f"\nlargest that fits: {largest:,}{whole}; fastest: {chosen.micro:,} x {share // chosen.micro} passes, same global batch")
    echo(results.plot(panels(tried)))
    use = replace(config, batch=replace(config.batch, micro=chosen.micro))
    results.run_file(use, f"micro-batch by find-batch in {out}: fastest of those that fit")
    return 0


def panels(tried: Sequence[Tried]) -> list[Panel]:
    """Rate and peak memory over the micro-batch."""
    fitting = [t for t in tried if t.fits]
    rates = Curve("all ranks", tuple((float(t.micro), t.samples_per_s or 0.0, 0.0) for t in fitting))
    peaks = Curve("fullest rank", tuple((float(t.micro), (t.peak_bytes or 0) / 2**30, 0.0) for t in fitting))
    x = "micro-batch (samples)"
    return [Panel("samples per second", x, "samples/s", (rates,)), Panel("peak memory", x, "GiB", (peaks,))]


def _predict(config: Config, world: World, share: int, limit: int | None) -> int:
    from harness.engine.memory_estimate import predict

    rows, largest = [["micro_batch", "accumulate", "GiB a rank", ""]], None
    for micro in [m for m in candidates(share) if m & (m - 1) == 0 or m == share]:
        found = predict(replace(config, batch=replace(config.batch, micro=micro)), world)
        fits = limit is None or found.peak <= limit
        largest = micro if fits else largest
        rows.append([f"{micro:,}", f"{share // micro:,}", f"{found.peak / 2**30:.3f}", "" if fits else "does not fit"])
        if not fits:
            break
    echo(aligned(rows))
    echo("tensors only, from shapes: the CUDA context and the allocator's fragmentation come on top")
    return 0 if largest else 1
