"""A run as Kubernetes manifests: an indexed Job with its headless Service, a JobSet, or a Kubeflow TrainJob. Pure text.

A pod is a node of the plan. Pods find the first of them by its name in DNS, which lasts over restarts, and meet there as several
hosts do. When a pod must go, its ranks get SIGTERM, all ranks of the run save together, and the pods that follow continue from
there. The run file travels in a ConfigMap; a secret is only ever named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from harness.config.allowed_names import checked
from harness.config.errors import UserError
from harness.config.run_folder import RUN_FILE
from harness.plan.world import World

Kind = Literal["job", "jobset", "trainjob"]
Tree = dict[str, Any]
LABEL = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
"""A DNS label (RFC 1123) short enough for the pods' host names, which add to it."""
SUBDOMAIN = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
_PART = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
IMAGE = rf"({_PART}(:[0-9]{{1,5}})?/)?{_PART}(/{_PART})*(:[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"
"""HOST:PORT/PATH:TAG@DIGEST, as the distribution specification writes it."""
MOST_TEXT = 900_000
"""Bytes of text that a ConfigMap can hold, with room for its own fields."""
USER = 10001
"""The user of docker/Dockerfile."""
RUN, RUNS, PORT = "/etc/widebatch", "/runs", 29400
SHM_GIB = 2
"""Shared memory for each rank: data workers and NCCL pass tensors through it."""
WAIT = 'until getent hosts "$FIRST_POD" > /dev/null; do sleep 1; done; exec widebatch "$@"'
"""Waits for the DNS name of the first pod, which may appear after the others start."""
SECRET_KEY = "WANDB_API_KEY"  # noqa: S105  the name of a variable


@dataclass(frozen=True, kw_only=True)
class Pods:
    """What the user may say of the pods. Raises UserError for a name that is not one."""

    name: str
    image: str
    claim: str
    """The PersistentVolumeClaim that holds checkpoints; every pod mounts it."""
    namespace: str | None = None
    secret: str | None = None
    """The Secret with the key WANDB_API_KEY; None: W&B is not online."""
    cpus: int = 4
    """CPU cores asked for each rank."""
    memory_gib: int = 16
    """Host memory for each rank, shared memory not included."""
    grace_s: int = 300
    """How long a pod that must go may take to save."""
    restarts: int = 10

    def __post_init__(self) -> None:
        label = "give at most 40 small letters, digits and -, a letter first and no - last"
        checked("--pod-name", self.name, LABEL, label)
        checked("--image", self.image, IMAGE, "write HOST/PATH:TAG, in small letters up to the tag")
        checked("--claim", self.claim, SUBDOMAIN, "give the name of a PersistentVolumeClaim")
        if self.namespace is not None:
            checked("--namespace", self.namespace, LABEL, label)
        if self.secret is not None:
            checked("--wandb-secret", self.secret, SUBDOMAIN, "give the name of a Secret, never the key itself")
        for flag, value, least in (
            ("--cpus-per-rank", self.cpus, 1),
            ("--memory-per-rank", self.memory_gib, 1),
            ("--grace-s", self.grace_s, 30),
        ):
            if value < least:
                raise UserError(flag, f"is {value}", f"give at least {least}")


def manifests(kind: Kind, pods: Pods, world: World, fewest: int, files: Mapping[str, str]) -> str:
    """The YAML of a run on `world`, a pod for each node, at least `fewest`; `files` go into the ConfigMap, run.yaml among them."""
    size = sum(len(text.encode()) for text in files.values())
    if size > MOST_TEXT:
        raise UserError(
            "--k8s",
            f"the run's files have {size:,} bytes, and a ConfigMap holds at most {MOST_TEXT:,}",
            "put recipes into the image",
        )
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(pods, f"{pods.name}-run"), "data": dict(files)}
    match kind:
        case "job":
            rest = [_service(pods), _job(pods, world, fewest)]
        case "jobset":
            rest = [_jobset(pods, world, fewest)]
        case "trainjob":
            rest = _trainjob(pods, world, fewest)
    return "---\n".join(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120) for tree in [held, *rest])


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as such, for people to read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _meta(pods: Pods, name: str) -> Tree:
    labels = {"app.kubernetes.io/name": "widebatch", "app.kubernetes.io/instance": pods.name}
    return {"name": name, **({"namespace": pods.namespace} if pods.namespace else {}), "labels": labels}


def _service(pods: Pods) -> Tree:
    """Gives each pod its name in DNS, also before it is ready."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"job-name": pods.name},
        "ports": [{"name": "rendezvous", "port": PORT}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(pods, pods.name), "spec": spec}


def _job(pods: Pods, world: World, fewest: int) -> Tree:
    spec = _job_spec(pods, world, fewest, f"{pods.name}-0.{pods.name}")
    spec["template"]["spec"]["subdomain"] = pods.name
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _meta(pods, pods.name), "spec": spec}


def _job_spec(pods: Pods, world: World, fewest: int, first: str) -> Tree:
    """A pod for each node. One that the cluster took away does not count as a failure; a mistake, or the guard, ends all."""
    ignored = [{"type": "DisruptionTarget", "status": "True"}]
    final = {"containerName": "ranks", "operator": "In", "values": [2, 3]}
    return {
        "completionMode": "Indexed",
        "completions": world.nodes,
        "parallelism": world.nodes,
        "backoffLimit": pods.restarts * world.nodes,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": ignored},
                {"action": "FailJob", "onExitCodes": final},
            ]
        },
        "template": {"metadata": {"labels": _meta(pods, pods.name)["labels"]}, "spec": _pod(pods, world, fewest, first, "ranks")},
    }


def _jobset(pods: Pods, world: World, fewest: int) -> Tree:
    """One failed pod starts all again at once, instead of one after the other."""
    job = _job_spec(pods, world, fewest, f"{pods.name}-ranks-0-0.{pods.name}")
    spec = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": pods.restarts},
        "replicatedJobs": [{"name": "ranks", "replicas": 1, "template": {"spec": job | {"backoffLimit": 0}}}],
    }
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": _meta(pods, pods.name), "spec": spec}


def _trainjob(pods: Pods, world: World, fewest: int) -> list[Tree]:
    """A TrainJob with its own runtime: a shared runtime's grace period and hooks cannot be overridden."""
    api, ranks = "trainer.kubeflow.org/v1alpha1", world.size // world.nodes
    pod = _pod(pods, world, fewest, f"{pods.name}-node-0-0.{pods.name}", "node")
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    job = {"name": "node", "template": {"metadata": {"labels": step}, "spec": {"template": {"spec": pod}}}}
    runtime = {
        "mlPolicy": {"numNodes": world.nodes, "torch": {"numProcPerNode": ranks}},
        "template": {"spec": {"failurePolicy": {"maxRestarts": pods.restarts}, "replicatedJobs": [job]}},
    }
    asked = {"runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": f"{pods.name}-run"}}
    return [
        {"apiVersion": api, "kind": "TrainingRuntime", "metadata": _meta(pods, f"{pods.name}-run"), "spec": runtime},
        {"apiVersion": api, "kind": "TrainJob", "metadata": _meta(pods, pods.name), "spec": asked},
    ]


def _pod(pods: Pods, world: World, fewest: int, first: str, container: str) -> Tree:
    """One node of the run."""
    shm = {"medium": "Memory", "sizeLimit": f"{SHM_GIB * (world.size // world.nodes)}Gi"}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": pods.grace_s,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(pods, world, fewest, first, container)],
        "volumes": [
            {"name": "run", "configMap": {"name": f"{pods.name}-run"}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": pods.claim}},
            {"name": "shm", "emptyDir": shm},
        ],
    }


def _container(pods: Pods, world: World, fewest: int, first: str, name: str) -> Tree:
    """The ranks of a node, under widebatch's launcher."""
    return {
        "name": name,
        "image": pods.image,
        "args": launch_args(world, fewest, first),
        "env": _environ(pods, world, first),
        "ports": [{"name": "rendezvous", "containerPort": PORT}],
        "resources": _resources(pods, world),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "lifecycle": {"preStop": {"exec": {"command": ["stop-ranks"]}}},
        "volumeMounts": [
            {"name": "run", "mountPath": RUN, "readOnly": True},
            {"name": "runs", "mountPath": RUNS},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  a mount, not a file
        ],
    }


def launch_args(world: World, fewest: int, first: str) -> list[str]:
    """The arguments of the image's entrypoint."""
    ranks = ["--gpus", str(world.size)] if world.device == "gpu" else ["--gpus", "0", "--procs", str(world.size)]
    start = ["launch", f"{RUN}/{RUN_FILE}", *ranks]
    if world.nodes == 1:
        return start
    nodes = str(world.nodes) if fewest == world.nodes else f"{fewest}:{world.nodes}"
    return ["sh", "-c", WAIT, "sh", *start, "--nodes", nodes, "--rendezvous", f"{first}:{PORT}"]


def _environ(pods: Pods, world: World, first: str) -> list[Tree]:
    plain = {"FIRST_POD": first} if world.nodes > 1 else {}
    if world.device == "cpu":
        plain["OMP_NUM_THREADS"] = str(pods.cpus)
    key = {"name": SECRET_KEY, "valueFrom": {"secretKeyRef": {"name": pods.secret, "key": SECRET_KEY}}}
    return [*({"name": name, "value": value} for name, value in plain.items()), *([key] if pods.secret else [])]


def _resources(pods: Pods, world: World) -> Tree:
    """GPUs and memory are a limit too; CPU is not, so that nobody is throttled. What lies in /dev/shm counts as memory."""
    ranks = world.size // world.nodes
    held: Tree = {"memory": f"{(pods.memory_gib + SHM_GIB) * ranks}Gi"}
    if world.device == "gpu":
        held["nvidia.com/gpu"] = str(ranks)
    return {"requests": {"cpu": str(pods.cpus * ranks)} | held, "limits": held}
