"""The C++ that DeepSpeed compiles for CPU ranks: built once, into a cache of our own, announced before; never a silent hang.

torch's extension builder leaves a file named `lock` behind when it is killed, and every later run waits for it for ever. Here a
lock of the kernel guards the build, which dies with its holder; a `lock` that nobody holds open is stale, and goes.

`python -m harness.engine.deepspeed_build` builds it without a run: a step of the environment.
"""

import fcntl
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from xxhash import xxh3_64_hexdigest

from harness.config.errors import UserError
from harness.supervision.exit_codes import USER
from harness.supervision.output_redirect import echo, say

PROGRESS_S = 10.0


def cache_folder() -> Path:
    """Where compiled operators lie: one folder per version of torch and Python, as they do not fit each other, and per environment.

    The builder's files name the environment's headers: two that shared a folder would build again each time they take turns.
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
    """Put this environment's programs first on PATH: two versions of ninja rebuild each other's builds."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def build_cpu_ops() -> Path:
    """Build what DeepSpeed's CPU ranks need, or wait for the process that does; load it; the folder that it lies in.

    To call before DeepSpeed joins a group. Raises UserError if it cannot be compiled.
    """
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_folder())))
    folder.mkdir(parents=True, exist_ok=True)
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    with (folder / "widebatch.lock").open("w") as guard:
        built = any(folder.glob("*/*.so"))
        if not built:
            say(f"compiling DeepSpeed's CPU operator into {folder}: once, about a minute on an idle machine")
        fcntl.flock(guard, fcntl.LOCK_EX)
        for stale in stale_locks(folder):
            say(f"removing {stale}, left by a build that was killed")
            stale.unlink()
        with own_programs(), _progress(shown=not built):
            try:
                ShareMemCommBuilder().load(verbose=False)
            except Exception as e:  # torch's builder raises RuntimeError, OSError, KeyError and ImportError
                log = folder / "compiler.log"
                log.write_text(str(e))
                why = next((line for line in str(e).splitlines() if re.search(r"error: |not found", line)), str(e)[:200])
                at = f"DeepSpeed's CPU operator cannot be compiled ({why.strip()}); the compiler's output is in {log}"
                raise UserError("backend.name", at, "install a C++ compiler such as g++, or use ddp or fsdp") from e
    return folder


@contextmanager
def _progress(*, shown: bool) -> Iterator[None]:
    """Say every PROGRESS_S that the compiler is still at work."""
    done, begin = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(PROGRESS_S):
            say(f"still compiling after {time.monotonic() - begin:.0f} s")

    reporter = threading.Thread(target=tell, name="progress", daemon=True)
    if shown:
        reporter.start()
    try:
        yield
    finally:
        done.set()


def main() -> int:
    """`python -m harness.engine.deepspeed_build`: build it now, so that no run has to; its exit status."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    if find_spec("deepspeed") is None:
        say("DeepSpeed is not installed: there is nothing to compile")
        return 0
    begin = time.monotonic()
    try:
        with redirect_stdout(sys.stderr):  # DeepSpeed's own words
            folder = build_cpu_ops()
    except UserError as e:
        say(f"error: {e}")
        return USER
    echo(f"DeepSpeed's CPU operator is ready in {folder} ({time.monotonic() - begin:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
