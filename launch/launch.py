"""widebatch launch RUN.yaml: the plan and the run folder in this process, training in others."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

from harness.plan.decode import load
from harness.plan.flags import add_settings, parse
from harness.plan.plan import plan
from harness.survive.lock import PATIENCE_S, FolderLock
from harness.watch.table import print_plan
from launch.asking import AGAINST, add_world, asked_world, check_here, dataset, run_folder, run_parser
from launch.attend import attend
from launch.command import accelerate_file, worker_command
from launch.commands import COMMANDS
from launch.evidence import add_from, measured_flags
from launch.folder import run_files, write
from launch.hosts import add_hosts, check_worlds, host_logs, hosts_command, meeting
from launch.manifests import add_k8s, check_k8s, write_manifests
from launch.submit import add_slurm, check_slurm, submit
from launch.supervise import supervise
from launch.worlds import add_bench, compare, print_hours, several


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
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
    args, settings = parse(parser, argv)
    settings = measured_flags(args.measured, args.run, settings)
    if args.against is not None:
        settings["watch.against"] = args.against
    slurm, k8s = check_slurm(parser, args), check_k8s(parser, args)
    config = load(args.run, settings)
    if args.dry_run and several(args):
        return compare(config, args, dataset(config))
    world = asked_world(args)
    if slurm:
        return submit(args, settings, world)
    if k8s:
        return write_manifests(args, settings, world)
    at = None
    if args.rendezvous is not None or world.nodes > 1:
        at = meeting(args.rendezvous, args.interface, args.nodes[0], config.run.dir)
    if not args.dry_run:
        check_here(world)
    size = dataset(config)
    planned = plan(config, world, size)
    folder = run_folder(config, args.run)
    config = replace(config, run=replace(config.run, dir=str(folder)))
    if not args.dry_run:
        lock = FolderLock(folder if at is None else host_logs(folder))
        lock.take("launcher", "widebatch launch")
        if at is None:
            lock.take("trainer", patience_s=PATIENCE_S)
            lock.give("trainer")  # to rank 0, when it is there
    files = run_files(config, planned)
    if at is None:
        files["accelerate.yaml"] = accelerate_file(planned, world)
        command = worker_command(sys.executable, str(folder), world)
    else:
        check_worlds(config, world, at.fewest, size)
        command = hosts_command(sys.executable, folder, world, at, asked=args.interface is not None)
    write(folder, files, dry=args.dry_run)
    print_plan(planned)
    print_hours(args.bench, planned)
    print(f"\n$ {command}", flush=True)
    if args.dry_run:
        return 0
    if at is not None:
        return attend(command, folder, world.size // world.nodes, config.restart)
    ranks = f"--gpus 0 --procs {world.size}" if world.device == "cpu" else f"--gpus {world.size}"
    again = f"widebatch launch {shlex.quote(f'{folder}/run.yaml')} {ranks}"
    return supervise(command, folder, planned.processes, planned.micro_batch, config.restart, again)
