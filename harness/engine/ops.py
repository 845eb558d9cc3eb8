"""The C++ that DeepSpeed compiles for CPU ranks: built once, into a cache of our own, with a word before; never a silent hang.

torch's extension builder leaves a file named `lock` behind when it is killed, and every later run waits for it for ever. Here a
lock of the kernel guards the build, which dies with its holder; a `lock` that nobody holds open is stale, and goes.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from xxhash import xxh3_64_hexdigest


def cache_folder() -> Path:
    """Where compiled operators lie: one folder per version of torch and Python, as they do not fit each other, and per environment.

    The builder's files name the environment's headers: two that shared a folder would build anew each time they take turns.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = f"torch{torch.__version__}-py{sys.version_info.major}{sys.version_info.minor}"
    return root / "widebatch" / f"ops-{version}-{xxh3_64_hexdigest(os.fsencode(sys.prefix))}"


def stale_locks(folder: Path) -> list[Path]:
    """The locks in `folder` that no process of this machine holds: torch's builder keeps its own open while it builds."""
    held = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            held.add(str(descriptor.readlink()))
        except OSError:
            continue
    return [lock for lock in folder.glob("*/lock") if str(lock.resolve()) not in held]


@contextmanager
def own_programs() -> Iterator[None]:
    """This environment's programs come before others of their name: two versions of ninja each build anew what the other built."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def build_cpu_ops() -> None:
    """Build what DeepSpeed's CPU ranks need, or wait for the process that does; load it. To call before DeepSpeed joins a group."""
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_folder())))
    folder.mkdir(parents=True, exist_ok=True)
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    with (folder / "widebatch.lock").open("w") as guard:
        built = any(folder.glob("*/*.so"))
        if not built:
            print(f"DeepSpeed's CPU operators are built in {folder}: once, about a minute", file=sys.stderr, flush=True)
        fcntl.flock(guard, fcntl.LOCK_EX)
        for stale in stale_locks(folder):
            print(f"removing {stale}, left by a build that was killed", file=sys.stderr, flush=True)
            stale.unlink()
        with own_programs():
            ShareMemCommBuilder().load(verbose=False)
