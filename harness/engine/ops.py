"""The C++ that DeepSpeed compiles for CPU ranks: built once, into a cache of our own, with a word before; never a silent hang.

torch's extension builder leaves a file named `lock` behind when it is killed, and every later run waits for it for ever. Here a
lock of the kernel guards the build, which dies with its holder; so a `lock` file found under it is stale, and goes.
"""

import fcntl
import os
import sys
from pathlib import Path

import torch


def cache_folder() -> Path:
    """Where compiled operators lie: one folder per version of torch and Python, as they do not fit each other."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "widebatch" / f"ops-torch{torch.__version__}-py{sys.version_info.major}{sys.version_info.minor}"


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
        for stale in folder.glob("*/lock"):
            print(f"removing {stale}, left by a build that was killed", file=sys.stderr, flush=True)
            stale.unlink()
        ShareMemCommBuilder().load(verbose=False)
