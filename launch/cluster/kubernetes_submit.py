"""widebatch launch --k8s: the plan, and the manifests of the run in its folder. `kubectl apply` is the user's."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.config.allowed_names import checked
from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.run_folder import RUN_FILE
from harness.config.schema import Config
from harness.config.sibling_modules import neighbours, relative
from harness.plan.plan import plan
from harness.plan.run_files import run_files
from harness.plan.world import World
from harness.supervision.output_redirect import echo
from harness.watch.plan_table import print_plan
from launch.cluster.kubernetes import RUN, RUNS, SECRET_KEY, Pods, manifests
from launch.cluster.torchrun import check_worlds
from launch.options.run_options import dataset, run_folder
from launch.processes.run_folder import write

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
    secret = f"Secret whose key {SECRET_KEY} holds the W&B API key, for watch.wandb online (default: wandb)"
    group.add_argument("--wandb-secret", metavar="NAME", default="wandb", help=secret)
    group.add_argument("--cpus-per-rank", type=int, metavar="N", default=4, help="CPU cores requested per rank (default: 4)")
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
    text = manifests(args.k8s, pods, world, args.nodes[0], {RUN_FILE: run_files(config, planned)[RUN_FILE], **code})
    write(folder, {FILE: text}, dry=args.dry_run)
    print_plan(planned)
    if pods.secret:
        echo(f"\nthe secret, once: kubectl create secret generic {pods.secret} --from-env-file=FILE   ({SECRET_KEY}=... in FILE)")
    if code:
        echo(f"\ntravels to the pods with the run file: {', '.join(code)}; data and other files beside them do not")
    echo(f"\n$ kubectl apply -f {shlex.quote(str(folder / FILE))}")
    return 0


def carried(config: Config) -> tuple[Config, dict[str, str]]:
    """The config as the pods read it, and the files of code that travel beside the run file: those it names, and the modules beside
    them that they import. A package that is installed in the image is left as it is named. Raises UserError."""
    files: dict[str, str] = {}

    def moved(setting: str, named: str) -> str:
        place, _, attribute = named.rpartition(":")
        if "/" not in place and not place.endswith(".py"):
            return named
        if not place.endswith(".py"):
            raise _in_package(setting, place)
        _carry(setting, Path(place), files)
        return f"{RUN}/{Path(place).name}:{attribute}"

    config = replace(
        config,
        recipe=replace(config.recipe, use=moved("recipe.use", config.recipe.use)),
        optim=replace(config.optim, name=moved("optim.name", config.optim.name)),
        scaling=replace(config.scaling, rule=moved("scaling.rule", config.scaling.rule)),
        watch=replace(config.watch, use=tuple(moved("watch.use", name) for name in config.watch.use)),
    )
    return config, files


def _carry(setting: str, path: Path, files: dict[str, str]) -> None:
    """Add a file, and what lies beside it and is imported, to `files`. Raises UserError."""
    name = checked(setting, path.name, r"[A-Za-z0-9._-]{1,253}", "give the file a name of letters, digits and . _ -")
    try:
        text = path.read_text()
    except OSError as e:
        raise UserError(setting, f"{str(path)!r} cannot be read: {e.strerror}", "give a file on this machine") from e
    if name in files:
        if files[name] != text:
            raise UserError(setting, f"names a second file {name}", "give the files different names")
        return
    if relative(path):
        raise _in_package(setting, str(path))
    files[name] = text
    for beside in neighbours(path).values():
        if beside.parent != path.parent:
            raise _in_package(setting, str(beside))
        _carry(setting, beside, files)


def _in_package(setting: str, named: str) -> UserError:
    """The mistake of code in a package, which a ConfigMap, a flat list of files, cannot hold."""
    remedy = "install the package in the image, and give package.module:Name in a run file that does not lie beside it"
    return UserError(setting, f"{named} is in a package, and only single files travel to the pods", remedy)
