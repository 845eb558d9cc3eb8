"""widebatch launch --k8s: the plan, and the manifests of the run in its folder. `kubectl apply` is the user's."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.plan.config import Config
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.names import checked
from harness.plan.plan import plan
from harness.plan.world import World
from harness.watch.table import print_plan
from launch.asking import dataset, run_folder
from launch.folder import run_files, write
from launch.hosts import check_worlds
from launch.kubernetes import RUN, RUNS, SECRET_KEY, Pods, manifests

GROUP, FILE = "kubernetes", "kubernetes.yaml"


def add_k8s(parser: argparse.ArgumentParser) -> None:
    """The flags of this file."""
    group = parser.add_argument_group(GROUP)
    kinds = "write manifests, start nothing: an indexed Job with its Service, a JobSet, or a Kubeflow TrainJob (default: job)"
    group.add_argument("--k8s", nargs="?", const="job", choices=("job", "jobset", "trainjob"), help=kinds)
    group.add_argument("--image", help="container image, built from docker/Dockerfile")
    group.add_argument("--claim", metavar="NAME", help="PersistentVolumeClaim that all pods share: where checkpoints are kept")
    group.add_argument("--pod-name", metavar="NAME", help="name of the job (default: the run file's)")
    group.add_argument("--namespace", metavar="NAME", help="namespace (default: kubectl's)")
    secret = f"Secret whose key {SECRET_KEY} is W&B's, where watch.wandb is online (default: wandb)"
    group.add_argument("--wandb-secret", metavar="NAME", default="wandb", help=secret)
    group.add_argument("--cpus-per-rank", type=int, metavar="N", default=4, help="CPU cores asked for each rank (default: 4)")
    memory = "host memory of each rank in GiB, 2 more for shared memory come on top (default: 16)"
    group.add_argument("--memory-per-rank", type=int, metavar="GIB", default=16, help=memory)
    grace = "seconds that a pod has to save before it goes (default: 300)"
    group.add_argument("--grace-s", type=int, metavar="S", default=300, help=grace)


def check_k8s(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Whether manifests are wanted. Raises UserError for a flag of this file without --k8s, and for what --k8s lacks."""
    wanted = args.k8s is not None
    group = next(g for g in parser._action_groups if g.title == GROUP)
    for action in group._group_actions:
        if not wanted and getattr(args, action.dest) != action.default:
            raise UserError(action.option_strings[0], "is for Kubernetes", "give --k8s too")
    if wanted:
        for flag, value, remedy in (
            ("--gpus", args.gpus, "give those of all nodes, or 0"),
            ("--image", args.image, "build docker/Dockerfile, push it, and name it"),
            ("--claim", args.claim, "name a PersistentVolumeClaim: a pod's own disk goes with it, and the checkpoints too"),
        ):
            if value is None:
                raise UserError(flag, "missing, and --k8s needs it", remedy)
    return wanted


def write_manifests(args: argparse.Namespace, settings: Mapping[str, str], world: World) -> int:
    """Plan the run, and write or print its manifests. Raises UserError."""
    config = load(args.run, settings)
    if config.watch.against is not None:
        raise UserError("watch.against", "names a folder of this machine, which pods do not see", "leave it out, and compare later")
    pods = Pods(
        name=args.pod_name or args.run.stem,
        image=args.image,
        claim=args.claim,
        namespace=args.namespace,
        secret=args.wandb_secret if config.watch.wandb == "online" else None,
        cpus=args.cpus_per_rank,
        memory_gib=args.memory_per_rank,
        grace_s=args.grace_s,
    )
    size = dataset(config)
    planned = plan(config, world, size)
    check_worlds(config, world, args.nodes[0], size)
    folder = run_folder(config, args.run)
    config, code = carried(replace(config, run=replace(config.run, dir=f"{RUNS}/{pods.name}")))
    text = manifests(args.k8s, pods, world, args.nodes[0], {"run.yaml": run_files(config, planned)["run.yaml"], **code})
    write(folder, {FILE: text}, dry=args.dry_run)
    print_plan(planned)
    if pods.secret:
        print(f"\nthe key, once: kubectl create secret generic {pods.secret} --from-env-file=FILE   ({SECRET_KEY}=... in FILE)")
    print(f"\n$ kubectl apply -f {shlex.quote(str(folder / FILE))}")
    return 0


def carried(config: Config) -> tuple[Config, dict[str, str]]:
    """The config as the pods read it, and the files of code that it names, which travel beside the run file. Raises UserError."""
    files: dict[str, str] = {}

    def moved(setting: str, named: str) -> str:
        path, _, attribute = named.rpartition(":")
        if not path.endswith(".py"):
            return named
        name = checked(setting, Path(path).name, r"[A-Za-z0-9._-]{1,253}", "give the file a name of letters, digits and . _ -")
        try:
            text = Path(path).read_text()
        except OSError as e:
            raise UserError(setting, f"{path!r} cannot be read: {e.strerror}", "give a file of this machine") from e
        if files.setdefault(name, text) != text:
            raise UserError(setting, f"names a second file {name}", "give the files different names")
        return f"{RUN}/{name}:{attribute}"

    config = replace(
        config,
        recipe=replace(config.recipe, use=moved("recipe.use", config.recipe.use)),
        scaling=replace(config.scaling, rule=moved("scaling.rule", config.scaling.rule)),
        watch=replace(config.watch, use=tuple(moved("watch.use", name) for name in config.watch.use)),
    )
    return config, files
