"""What a machine may lack during a run: threads, shared memory. It costs what it must, and is said in a line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environ

NO_THREADS = """
import os, resource, threading
import torch
from harness.checkpoint.staging import Staging
from harness.checkpoint.tensor_slices import whole

staging = Staging(torch.device("cpu"))
staging.prepare([])  # imports what it needs, and has its writer, which is not stopped
if os.geteuid() == 0:
    os.setuid(65534)  # root has no such limit
resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
try:
    threading.Thread(target=print).start()
    print("no limit here")
except RuntimeError:
    try:
        staging.prepare([whole("a", torch.ones(8))])
    except OSError as e:
        print(type(e).__name__)
    print("filled", staging._ready is None, len(staging._views))
os._exit(0)
"""


def test_a_checkpoint_s_memory_needs_no_thread_of_its_own() -> None:
    """Past `ulimit -u` no thread starts: then the memory is filled where it is asked for."""
    done = subprocess.run([sys.executable, "-c", NO_THREADS], env=environ(), capture_output=True, text=True, check=False)
    if "no limit here" in done.stdout:
        pytest.skip("this kernel does not keep the limit")
    assert "filled True 1" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a mount of its own")
def test_a_full_shared_memory_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport torch\nfrom harness.recipes.digits import Digits\n"
        "class Rows:\n    def __len__(self): return 64\n"
        "    def __getitem__(self, i): return torch.ones(1, 8, 8), torch.tensor(i % 10)\n"
        "@dataclass(frozen=True)\nclass Mine(Digits):\n    workers: int = 1\n    def data(self, split): return Rows()\n"
    )
    text = (ROOT / "configs" / "digits.yaml").read_text().replace("use: digits", "use: mine.py:Mine")
    (tmp_path / "run.yaml").write_text(text.replace("samples: 1437", "samples: 64"))
    train = f"{sys.executable} -m launch train run.yaml --run.dir run --batch.per_gpu null --batch.total 32 --watch.wandb off"
    fill = "mount -t tmpfs -o size=8k tmpfs /dev/shm && { dd if=/dev/zero of=/dev/shm/x bs=4k count=2 2>/dev/null; "
    argv = ["unshare", "--mount", "sh", "-c", f"{fill}{train}; }}"]
    done = subprocess.run(argv, cwd=tmp_path, env=environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: recipe.workers: cannot hand a batch over: /dev/shm is full (")
    assert line.endswith("free it, enlarge it (docker: --shm-size=8g), or give workers: 0")
