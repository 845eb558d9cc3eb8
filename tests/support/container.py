"""`make test-container`: build the image with buildah and run it with podman: a user without rights, two ranks, a clean stop.

Needs buildah, podman, crun and mmdebstrap from Debian, and root. By default on a small Debian, for CPU ranks; `BASE_IMAGE=...` in
the environment takes another. What pip is told on this machine (mirrors, certificates) it is told in the build too, by mounts: none
of it stays in the image.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/widebatch-base:bookworm", "localhost/widebatch:test"
LEAST_TOOLS = ("buildah", "podman", "crun", "mmdebstrap", "unshare")
SECRET = "a-key-that-must-not-be-in-the-image"  # noqa: S105  made up
LIMITS = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
"""The containers.conf of the test."""
START_S = 600
"""How long a run in the container may take to its first window, on a busy machine."""
FEW_STEPS = ("--run.dir", "/work/run", "--run.stop_after_steps", "20", "--watch.wandb", "off")


def call(argv: Sequence[str], *, status: int = 0, quiet: bool = True) -> str:
    """Run a command and return what it printed; ends the test where its exit status is another than `status`."""
    done = subprocess.run(argv, capture_output=quiet, text=True, check=False, env=os.environ | {"WANDB_API_KEY": SECRET})
    said = f"{done.stdout or ''}{done.stderr or ''}"
    if done.returncode != status:
        sys.exit(f"{' '.join(argv)}\nended with {done.returncode} instead of {status}:\n{said[-4000:]}")
    return said


def pip_mounts(folder: Path) -> Iterator[str]:
    """What the build must see so that pip finds packages as it does here."""
    lines = [line for line in call([sys.executable, "-m", "pip", "config", "list"]).splitlines() if line.startswith("global.")]
    settings = [line.removeprefix("global.").replace("'", "") for line in lines]
    conf = folder / "pip.conf"
    conf.write_text("\n".join(["[global]", *settings, ""]))
    yield f"{conf}:/etc/pip.conf:ro"
    for word in {word for setting in settings for word in setting.partition("=")[2].split()}:
        path = Path(word.removeprefix("file://").removesuffix("/simple"))
        if path.is_absolute() and path.exists():
            yield f"{path}:{path}:ro"


def build(folder: Path) -> None:
    """The base, once, and the image on it."""
    base = os.environ.get("BASE_IMAGE", BASE)
    if base == BASE and subprocess.run(["podman", "image", "exists", BASE], check=False).returncode:
        print(f"making {BASE}", flush=True)
        packages = "ca-certificates,python3,python3-pip,python3-venv,tini"
        call(["mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder / "base.tar")])
        call(["podman", "import", "--quiet", str(folder / "base.tar"), BASE])
        (folder / "base.tar").unlink()
    mounts = [part for mount in pip_mounts(folder) for part in ("--volume", mount)]
    begin = time.monotonic()
    argv = ["buildah", "bud", "--isolation", "chroot", "--network", "host", "--layers", *mounts]
    call([*argv, "--build-arg", f"BASE_IMAGE={base}", "--file", "docker/Dockerfile", "--tag", IMAGE, "."], quiet=False)
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)


def podman(*arguments: str, before: Sequence[str] = ()) -> list[str]:
    """`podman run` of the image."""
    return within(["podman", "run", "--network", "host", "--shm-size", "256m", *before, IMAGE, *arguments])


def within(argv: Sequence[str]) -> list[str]:
    """The same command in a mount namespace of its own, where crun sees one kind of control groups."""
    tidy = 'mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified; exec "$@"'
    return ["unshare", "--mount", "sh", "-c", tidy, "sh", *argv]


def check_image() -> None:
    """Who runs in it, what is in it and what is not."""
    assert call(podman("sh", "-c", "id -u; id -g", before=["--rm"])).split() == ["10001", "10001"]
    assert '"global_batch": 256' in call(podman("plan", "configs/digits.yaml", "--gpus", "8", "--json", before=["--rm"]))
    assert "error: --gpus" in call(podman("plan", "configs/digits.yaml", "--gpus", "x", before=["--rm"]), status=2)
    other = ["--rm", "--user", "12345:0", "--tmpfs", "/work/run:mode=1777"]
    stranger = podman("train", "configs/digits.yaml", *FEW_STEPS, before=other)
    assert "stop_after_steps" in call(stranger), "a user of the cluster's choice, without a home"
    with tempfile.TemporaryDirectory(prefix="widebatch-runs-") as runs:
        os.chown(runs, 12345, 12345)
        mine = ("--rm", "--volume", f"{runs}:/work/runs")
        short = ("train", "configs/digits.yaml", *FEW_STEPS[2:])
        assert "run.dir: " in call(podman(*short, before=mine), status=2), "the image's own user may not write there"
        assert "stop_after_steps" in call(podman(*short, before=[*mine, "--user", "12345:12345"])), "as README says"
    whole = call(["podman", "inspect", IMAGE]) + call(["podman", "history", "--no-trunc", IMAGE])
    assert SECRET not in whole
    strange = "-name .git -o -path /work/tests -o -path /build -o -path '*/site-packages/tests'"
    left = call(podman("sh", "-c", f"cat /etc/pip.conf 2>/dev/null; find / -xdev {strange} 2>/dev/null; true", before=["--rm"]))
    assert not left, f"what the build was told of this machine stays out, and so does what .dockerignore names: {left}"
    size = json.loads(call(["podman", "inspect", IMAGE]))[0]["Size"]
    print(f"image: {size / 1e9:.2f} GB", flush=True)


def losses(events: Path) -> list[float]:
    """The loss of every step."""
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return [line["train/loss"] for line in lines if line["event"] == "step"]


def check_ranks(folder: Path) -> None:
    """Two ranks in the container compute what one process computes outside of it."""
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    inside.chmod(0o777)
    begin = time.monotonic()
    batch = ("--batch.total", "32")
    two = ("launch", "configs/digits.yaml", "--gpus", "0", "--procs", "2", *batch, *FEW_STEPS)
    call(podman(*two, before=["--rm", "--env", "OMP_NUM_THREADS=1", "--volume", f"{inside}:/work/run"]))
    print(f"2 ranks, 20 steps: {time.monotonic() - begin:.0f} s", flush=True)
    here = [sys.executable, "-m", "launch", "train", "configs/digits.yaml", *batch, *FEW_STEPS, "--run.dir", str(outside)]
    call(here)
    pairs = list(zip(losses(inside / "events.jsonl"), losses(outside / "events.jsonl"), strict=True))
    worst = max(abs(a / b - 1) for a, b in pairs)
    print(f"losses of {len(pairs)} steps: worst relative difference to one process {worst:.1e}", flush=True)
    assert len(pairs) == 20
    assert worst < 1e-4


def check_stop(folder: Path, how: Sequence[str]) -> None:
    """A stop, as podman or Kubernetes asks for it: a checkpoint, and the status of a run that was told to stop."""
    kind = "stop-ranks" if "stop-ranks" in how else "stop"
    run = folder / kind
    run.mkdir()
    run.chmod(0o777)
    long = ("launch", "configs/digits.yaml", "--gpus", "0", "--procs", "2", "--schedule.epochs", "100000")
    before = ["--detach", "--name", "widebatch-stop", "--volume", f"{run}:/work/run", "--env", "OMP_NUM_THREADS=1"]
    call(["podman", "rm", "--force", "--ignore", "widebatch-stop"])
    call(podman(*long, "--run.dir", "/work/run", "--watch.wandb", "off", before=before))
    deadline = time.monotonic() + START_S
    while not (run / "events.jsonl").exists() or '"window"' not in (run / "events.jsonl").read_text():
        assert time.monotonic() < deadline, call(["podman", "logs", "widebatch-stop"])
        time.sleep(0.2)
    begin = time.monotonic()
    call(how)
    status = int(call(["podman", "wait", "widebatch-stop"]).split()[-1])
    call(["podman", "rm", "--force", "widebatch-stop"])
    end = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    print(f"{kind}: stopped in {time.monotonic() - begin:.1f} s with status {status}: {end['reason']}", flush=True)
    assert end["reason"] == "stop_requested"
    assert status in (1, 75), "1 where torchrun stands between the ranks and us"
    assert list((run / "checkpoints").iterdir())


def check_pods(folder: Path) -> None:
    """The pods of a manifest, as the kubelet would run them: two containers, a rank in each, that meet by the first one's name."""
    config, claim = folder / "config", folder / "claim"
    wishes = ("--batch.total", "32", "--run.stop_after_steps", "20", "--watch.wandb", "off", "--run.dir", str(folder / "manifest"))
    world = ("--gpus", "0", "--procs", "2", "--nodes", "2", "--k8s", "--image", IMAGE, "--claim", "runs")
    call([sys.executable, "-m", "launch", "launch", "configs/digits.yaml", *world, *wishes])
    held, _, job = yaml.safe_load_all((folder / "manifest" / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    for place in (config, claim):
        place.mkdir()
        place.chmod(0o777)
    for name, text in held["data"].items():
        (config / name).write_text(text)
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    here = call(["hostname", "-I"]).split()[0]
    options = [part for name, value in environ.items() for part in ("--env", f"{name}={value}")]
    options += [
        "--add-host",
        f"{environ['FIRST_POD']}:{here}",
        "--volume",
        f"{config}:/etc/widebatch:ro",
        "--volume",
        f"{claim}:/runs",
    ]
    begin = time.monotonic()
    pods = []
    for number in range(job["spec"]["completions"]):
        name = f"{job['metadata']['name']}-{number}"  # which the kubelet gives the pod, and writes into its /etc/hosts
        # host pids: the pods share one address here, and torchrun tells its agents apart by address and pid
        named = ["--rm", "--pid", "host", "--uts", "private", "--hostname", name, "--add-host", f"{name}:{here}"]
        pods.append(subprocess.Popen(podman(*container["args"], before=[*named, *options])))
    assert [pod.wait(START_S) for pod in pods] == [0, 0]
    found = losses(claim / "digits" / "events.jsonl")
    print(f"2 pods of a manifest, {len(found)} steps: {time.monotonic() - begin:.0f} s", flush=True)
    one = losses(folder / "inside" / "events.jsonl")
    assert max(abs(a / b - 1) for a, b in zip(found, one, strict=True)) < 1e-4, "the losses of the two ranks in one container"


def main() -> int:
    """The whole test; its exit status."""
    missing = [tool for tool in LEAST_TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid():
        print(f"skipped: needs root and {', '.join(missing) or 'nothing else'}")
        return 0
    with tempfile.TemporaryDirectory(prefix="widebatch-container-") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "containers.conf").write_text(LIMITS)
        os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
        os.chdir(ROOT)
        build(folder)
        check_image()
        check_ranks(folder)
        check_pods(folder)
        check_stop(folder, ["podman", "stop", "--time", "60", "widebatch-stop"])
        check_stop(folder, within(["podman", "exec", "widebatch-stop", "stop-ranks"]))
    print("container: all well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
