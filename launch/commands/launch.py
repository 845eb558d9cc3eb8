"""widebatch launch RUN.yaml: the plan and the run folder in this process, training in others."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.config.flags import add_settings
from harness.config.run_folder import ACCELERATE, RunFolder
from harness.config.schema import Config
from harness.plan.plan import Plan, plan
from harness.plan.run_files import run_files
from harness.plan.world import World
from harness.supervision.output_redirect import echo, outlive_readers
from harness.supervision.run_lock import PATIENCE_S, FolderLock
from harness.supervision.safe_files import check_folders
from harness.watch.plan_table import print_plan
from launch.cluster.host_supervisor import attend
from launch.cluster.kubernetes_submit import add_k8s, check_k8s, write_manifests
from launch.cluster.slurm_submit import add_slurm, check_slurm, submit
from launch.cluster.torchrun import Meeting, add_hosts, check_worlds, host_logs, hosts_command, meeting
from launch.options.commands import COMMANDS
from launch.options.compare_plans import add_bench, compare, print_hours, several
from launch.options.evidence_option import add_from
from launch.options.run_argument import read_run
from launch.options.run_options import AGAINST, add_world, asked_world, check_here, dataset, run_folder, run_parser
from launch.processes.command import Command, accelerate_file, worker_command
from launch.processes.run_folder import warned, write
from launch.processes.supervisor import supervise


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = run_parser("launch", COMMANDS["launch"])
    add_world(parser)
    add_bench(parser)
    parser.add_argument("--against", metavar="RUN", help=AGAINST)
    parser.add_argument("--dry-run", action="store_true", help="print the files and the exact command, start nothing")
    add_hosts(parser)
    add_slurm(parser)
    add_k8s(parser)
    add_from(parser)
    add_settings(parser)
    args, settings, config = read_run(parser, argv, asked_world, own=True)
    slurm, k8s = check_slurm(parser, args), check_k8s(parser, args)
    if args.dry_run and several(args):
        return compare(config, args, dataset(config))
    world = asked_world(args)
    if slurm:
        return submit(args, settings, world)
    if k8s:
        return write_manifests(args, settings, world)
    several_hosts = args.rendezvous is not None or world.nodes > 1
    at = meeting(args.rendezvous, args.interface, args.nodes[0], config.run.dir) if several_hosts else None
    if not args.dry_run:
        outlive_readers()
        check_here(world)
    return _one_host(args, config, world) if at is None else _several_hosts(args, config, world, at)


def _one_host(args: argparse.Namespace, config: Config, world: World) -> int:
    """Plan, write the run folder, and supervise the ranks on this machine. Raises UserError."""
    planned = plan(config, world, dataset(config))
    folder, config = _placed(config, args.run)
    if not args.dry_run:
        check_folders(folder, own_checkpoints=config.checkpoint.dir is None)
        lock = FolderLock(folder)
        lock.take("launcher", "widebatch launch")
        lock.take("trainer", patience_s=PATIENCE_S)
        lock.give("trainer")  # rank 0 takes it
    command = worker_command(sys.executable, str(folder), world)
    _prepare(args, planned, folder, run_files(config, planned) | {ACCELERATE: accelerate_file(planned, world)}, command)
    if args.dry_run:
        return 0
    ranks = f"--gpus 0 --procs {world.size}" if world.device == "cpu" else f"--gpus {world.size}"
    again = f"widebatch launch {shlex.quote(str(RunFolder(folder).run_file))} {ranks}"
    place = RunFolder(folder).checkpoints(config)
    return supervise(command, folder, place, planned.processes, planned.micro_batch, config.restart, again)


def _several_hosts(args: argparse.Namespace, config: Config, world: World, at: Meeting) -> int:
    """Plan, write the run folder, and supervise this host's ranks of a run on several hosts. Raises UserError."""
    size = dataset(config)
    planned = plan(config, world, size)
    folder, config = _placed(config, args.run)
    if not args.dry_run:
        check_folders(folder, own_checkpoints=config.checkpoint.dir is None)
        lock = FolderLock(host_logs(folder))  # held until this process ends
        lock.take("launcher", "widebatch launch")
    files = run_files(config, planned)
    check_worlds(config, world, at.fewest, size)
    command = hosts_command(sys.executable, folder, world, at, asked=args.interface is not None)
    _prepare(args, planned, folder, files, command)
    if args.dry_run:
        return 0
    return attend(command, folder, RunFolder(folder).checkpoints(config), world.size // world.nodes, config.restart)


def _placed(config: Config, run: Path) -> tuple[Path, Config]:
    """(the run folder, the run file that names it)."""
    folder = run_folder(config, run)
    return folder, replace(config, run=replace(config.run, dir=str(folder)))


def _prepare(args: argparse.Namespace, planned: Plan, folder: Path, files: Mapping[str, str], command: Command) -> None:
    """Write the run folder (print it with --dry-run); print the plan and the command."""
    known = warned(folder)
    write(folder, files, dry=args.dry_run)
    print_plan(planned, known)
    print_hours(args.bench, planned)
    echo(f"\n$ {command}")
