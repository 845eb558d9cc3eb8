"""Manifests: as recorded, valid for the API by its own schema, without secrets, and without a name that could be anything else."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.config.errors import UserError
from harness.plan.world import World
from launch.cli import main
from launch.cluster.kubernetes import IMAGE, LABEL, SUBDOMAIN, Kind, Pods, manifests
from tests.support.processes import ROOT

DIGITS = str(ROOT / "configs" / "digits.yaml")
GOLDEN = ROOT / "tests" / "golden"
KINDS: tuple[Kind, ...] = ("job", "jobset", "trainjob")
PODS = Pods(name="digits", image="example.com/team/widebatch:1.2", claim="runs", secret="wandb", namespace="lab")  # noqa: S106  a name
FILES = {"run.yaml": "recipe:\n  use: digits\n"}
VERSION = "1.33"


def pod_of(tree: dict[str, Any]) -> dict[str, Any] | None:
    """The pod template of a manifest."""
    spec = tree.get("spec", {})
    match tree["kind"]:
        case "Job":
            return dict(spec["template"])
        case "JobSet":
            return dict(spec["replicatedJobs"][0]["template"]["spec"]["template"])
        case "TrainingRuntime":
            return dict(spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"])
    return None


def check_by_the_api(text: str) -> None:
    """Validate strictly what Kubernetes knows itself; of the kinds that others define, their pods, as those of a Job."""
    for tree in yaml.safe_load_all(text):
        if tree["kind"] in ("JobSet", "TrainingRuntime"):
            tree = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "pods"}, "spec": {"template": pod_of(tree)}}
        if tree["kind"] != "TrainJob":
            kubernetes_validate.validate(tree, VERSION, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_as_recorded_and_valid(kind: Kind) -> None:
    text = manifests(kind, PODS, World(16, 2), 2, FILES)
    assert text == (GOLDEN / f"kubernetes_{kind}.yaml").read_text()
    check_by_the_api(text)


def test_the_validation_sees_a_field_that_is_none() -> None:
    text = manifests("jobset", PODS, World(16, 2), 2, FILES).replace("fsGroup:", "fsGruop:")
    with pytest.raises(kubernetes_validate.ValidationError):
        check_by_the_api(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [World(1), World(8), World(4, 1, "cpu"), World(16_384, 2_048)])
def test_every_kind_holds_the_same_pod_for_every_world(kind: Kind, world: World) -> None:
    text = manifests(kind, PODS, world, world.nodes, FILES)
    check_by_the_api(text)
    (pod,) = [p for p in map(pod_of, yaml.safe_load_all(text)) if p]
    (container,) = pod["spec"]["containers"]
    asked, limit = container["resources"]["requests"], container["resources"]["limits"]
    ranks = world.size // world.nodes
    assert limit.get("nvidia.com/gpu") == (str(ranks) if world.device == "gpu" else None)
    assert asked == {"cpu": str(4 * ranks)} | limit
    assert limit["memory"] == f"{18 * ranks}Gi"
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{2 * ranks}Gi"}} in pod["spec"]["volumes"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 300
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["stop-ranks"]
    assert ("--rendezvous" in container["args"]) == (world.nodes > 1)
    assert len(text) < 6_000, "nothing is written pod by pod"


def test_a_world_that_may_shrink_says_so() -> None:
    (_, _, job) = yaml.safe_load_all(manifests("job", PODS, World(32, 4), 2, FILES))
    args = pod_of(job)["spec"]["containers"][0]["args"]  # type: ignore[index]
    assert args[args.index("--nodes") + 1] == "2:4"


ALLOWED = {"name": LABEL, "image": IMAGE, "claim": SUBDOMAIN, "secret": SUBDOMAIN, "namespace": LABEL}
NASTY = st.one_of(st.text(max_size=60), st.from_regex(rf"{LABEL}\n", fullmatch=True), st.from_regex(LABEL, fullmatch=True))


@settings(max_examples=40)
@given(field=st.sampled_from(sorted(ALLOWED)), value=NASTY)
@example(field="name", value="a\n")
@example(field="image", value="x:y\nkind: Pod")
@example(field="claim", value="a: b")
@example(field="namespace", value="kube\n")
@example(field="secret", value="a{}")
@example(field="name", value="٣")
def test_a_name_is_one_as_a_whole_or_refused(field: str, value: str) -> None:
    names: dict[str, str] = {"name": "a", "image": "a", "claim": "a", field: value}
    try:
        pods = Pods(**names)  # type: ignore[arg-type]
    except UserError:
        return
    for given_, allowed in ((names[name], ALLOWED[name]) for name in names):
        assert re.fullmatch(allowed, given_, re.ASCII)
        assert given_.isascii()
        assert not set(given_) & set("\n\r\t \"'{}[]#&*!|>%`$\\")
    trees = list(yaml.safe_load_all(manifests("job", pods, World(16, 2), 2, FILES)))
    assert [tree["kind"] for tree in trees] == ["ConfigMap", "Service", "Job"]


@settings(max_examples=40)
@given(st.text(max_size=200))
@example("a: b\n---\nkind: Pod")
@example("\ttab\r\n\x85\u2028")
def test_whatever_a_run_file_says_stays_text(text: str) -> None:
    held = next(yaml.safe_load_all(manifests("job", PODS, World(8), 1, {"run.yaml": text})))
    assert held["data"] == {"run.yaml": text}


@pytest.mark.parametrize(
    "image", ["python", "nvidia/cuda:12.8.1-base-ubuntu24.04", "host.io:5000/a/b_c/d-e:v1", "a@sha256:" + "0" * 64]
)
def test_names_of_images_that_people_use_are_taken(image: str) -> None:
    Pods(name="a", image=image, claim="a")


def test_the_run_file_and_its_code_travel_and_no_secret_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-mine")
    (tmp_path / "task.py").write_text("import k8s_beside\nfrom harness.recipes.digits import Digits as Mine\n")
    (tmp_path / "k8s_beside.py").write_text("def late():\n    import k8s_deep\n")
    (tmp_path / "k8s_deep.py").write_text("")
    flags = ["--gpus", "16", "--nodes", "2", "--k8s", "jobset", "--image", "widebatch:1", "--claim", "runs"]
    wishes = ["--recipe.use", "task.py:Mine", "--watch.wandb", "online"]
    assert main(["launch", DIGITS, *flags, *wishes, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"
    assert "travels to the pods with the run file: task.py, k8s_beside.py, k8s_deep.py; data and other files" in out
    assert main(["launch", *wishes, *flags[:4], "--k8s", DIGITS, *flags[6:], "--dry-run"]) == 0, "--k8s before the run file"
    assert "kind: Service" in capsys.readouterr().out
    assert main(["launch", DIGITS, *flags, *wishes]) == 0
    (path,) = tmp_path.glob("runs/*/kubernetes.yaml")
    text = path.read_text()
    assert text in out
    held, jobset = yaml.safe_load_all(text)
    run = yaml.safe_load(held["data"]["run.yaml"])
    assert run["recipe"]["use"] == "/etc/widebatch/task.py:Mine"
    assert run["run"]["dir"] == "/runs/digits"
    for name in ("task.py", "k8s_beside.py", "k8s_deep.py"):
        assert held["data"][name] == (tmp_path / name).read_text()
    env = pod_of(jobset)["spec"]["containers"][0]["env"]  # type: ignore[index]
    assert env[-1]["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    assert "a-key-of-mine" not in text + out


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--k8s", "--gpus", "8"], "--image"),
        (["--k8s", "--gpus", "8", "--image", "a"], "--claim"),
        (["--k8s", "--image", "a", "--claim", "b"], "--gpus"),
        (["--image", "a", "--gpus", "8"], "give --k8s too"),
        (["--k8s", "pod"], "--k8s"),
        (["--k8s", "--gpus", "8", "--image", "a b", "--claim", "b"], "--image"),
        (["--k8s", "--gpus", "8", "--image", "a", "--claim", "b", "--pod-name", "My_Run"], "--pod-name"),
        (["--k8s", "--gpus", "8", "--image", "a", "--claim", "b", "--grace-s", "1"], "--grace-s"),
        (["--k8s", "--gpus", "8", "--image", "a", "--claim", "b", "--watch.against", "runs/x"], "watch.against"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", DIGITS, *flags, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("use", "files", "named"),
    [
        (
            "k8s_a/task.py:Mine",
            {"k8s_a/__init__.py": "", "k8s_a/task.py": "from . import other\n", "k8s_a/other.py": ""},
            "k8s_a/task.py",
        ),
        ("k8s_b.task:Mine", {"k8s_b/task.py": ""}, "k8s_b.task"),
        ("k8s_c.py:Mine", {"k8s_c.py": "import k8s_d\n", "k8s_d/__init__.py": ""}, "k8s_d"),
    ],
)
def test_code_in_a_package_is_refused_with_what_to_do(
    use: str,
    files: dict[str, str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"{text}from harness.recipes.digits import Digits as Mine\n")
    flags = ["--gpus", "16", "--nodes", "2", "--k8s", "--image", "widebatch:1", "--claim", "runs", "--dry-run"]
    assert main(["launch", *flags, DIGITS, "--recipe.use", use]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"recipe.use: \S*{named}\S* is in a package, and only single files travel to the pods; install", error), error
