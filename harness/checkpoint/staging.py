"""A staging buffer between a rank and its writer process: training stops for one copy into it, and no longer.

The memory is allocated once, after the first step, beside training; on a GPU it is pinned. It is shared by an anonymous file, so it
needs no room in /dev/shm and is gone when both processes are. The writer (writer_process.py) is a separate program, not a fork: a
process that holds a GPU, threads and a hundred gigabytes cannot be forked safely.
"""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from harness.checkpoint.json_pipe import JsonLineReader, send
from harness.checkpoint.safetensors_io import lay_out
from harness.checkpoint.tensor_slices import TensorSlice
from harness.checkpoint.writer_process import Task
from harness.config.errors import UserError

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.complex128: "C128", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
}  # fmt: skip
"""Types by safetensors' names."""
GRACE_S = 5.0
"""How long a run that fails waits for the save in progress."""
_MADV_POPULATE_WRITE = 23
Shape = tuple[str, tuple[int, ...], int, int, str]


def check_types(model: nn.Module) -> None:
    """Raises UserError if a checkpoint cannot hold one of the model's tensors."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dtype not in NAMES:
            at = f"the model's {name} has the type {tensor.dtype}, for which checkpoints have no name"
            raise UserError("recipe.use", at, "keep it in another type, such as torch.float32 or torch.uint8")


@final
class Staging:
    """One rank's staging buffer and its writer process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = os.memfd_create("checkpoint")
        self._shapes: list[Shape] = []
        self._views: list[Tensor] = []
        self._size = 0
        self._pinned = 0
        self._map: mmap.mmap | None = None
        self._writer: subprocess.Popen[bytes] | None = None
        self._lines = JsonLineReader(-1)
        self._ready: threading.Thread | None = None
        self.problem = ""
        """What is wrong with the memory: it could not be allocated, or not be pinned. Empty if nothing is."""

    def prepare(self, pieces: Sequence[TensorSlice]) -> None:
        """Get memory for pieces such as these, and a writer, beside what continues; a later `take` waits for it. Raises OSError."""
        shapes = [(p.name, p.shape, p.start, len(p.data), NAMES[p.data.dtype]) for p in pieces]
        if shapes == self._shapes:
            return
        self._wait_ready()
        entries = lay_out(shapes)
        places = {(e.name, e.start): e for e in entries}
        size = entries[-1].last if entries else 0
        if size > self._size:
            self._unpin()
            os.ftruncate(self._memory, size)
            self._map, self._size = mmap.mmap(self._memory, size), size
            ready = threading.Thread(target=self._fill, args=(self._map,), name="checkpoint memory", daemon=True)
            try:
                ready.start()
                self._ready = ready
            except RuntimeError:  # no thread can be started (ulimit -u)
                self._fill(self._map)
        flat = torch.frombuffer(self._map, dtype=torch.uint8) if self._map else torch.empty(0, dtype=torch.uint8)
        self._views = []
        for p in pieces:
            place = places[p.name, p.start]
            self._views.append(flat[place.first : place.last].view(p.data.dtype))
        self._shapes = shapes
        self._start()  # the writer learns of the layout

    def take(self, pieces: Sequence[TensorSlice], task: Task) -> None:
        """Copy the pieces, and have them written. Training may continue when this returns. Raises OSError."""
        self.prepare(pieces)
        self._wait_ready()
        if not self._running():
            self._start()
        if pieces:  # a rank may hold nothing of a small model
            with torch.no_grad():
                torch._foreach_copy_(self._views, [p.data for p in pieces], non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        assert self._writer is not None and self._writer.stdin is not None  # noqa: S101, PT018  started above
        send(self._writer.stdin.fileno(), asdict(task))

    def told(self, limit_s: float) -> dict[str, Any] | None:
        """The writer's next message, waited for at most so long; a problem where the writer is gone."""
        line = self._lines.next(limit_s)
        if line is None and self._lines.ended and self._writer is not None:
            return {"problem": f"the writer process ended with {self._writer.wait()}"}
        return line

    def abandon(self, why: str) -> None:
        """Tell the writer to stop waiting for other ranks."""
        if self._writer is not None and self._writer.stdin is not None and self._running():
            try:
                send(self._writer.stdin.fileno(), {"abandon": why})
            except OSError:
                return  # the writer is gone: `told` reports it

    def drop(self) -> None:
        """End the writer, whatever it is at. The next save starts another."""
        if self._writer is not None:
            self._writer.kill()
            self._stop()

    def close(self, busy: bool) -> None:
        """End the writer; one that is `busy` gets GRACE_S to finish."""
        self._wait_ready()
        self._stop(GRACE_S if busy else 0.0)
        self._unpin()
        os.close(self._memory)

    def _fill(self, memory: mmap.mmap) -> None:
        """Touch all pages of the memory before it is used, without Python's lock, so that the first save is as fast as the
        others."""
        try:
            os.posix_fallocate(self._memory, 0, len(memory))
            address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
            ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), _MADV_POPULATE_WRITE)
            if self._device.type == "cuda":
                with torch.cuda.device(self._device):
                    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                    torch.cuda.check_error(int(runtime.cudaHostRegister(address, len(memory), 0)))
                self._pinned = address
        except Exception as e:  # noqa: BLE001  a thread: what it does not report is lost, and training needs none of it
            self.problem = f"{len(memory):,} bytes of host memory for checkpoints: {e}"

    def _unpin(self) -> None:
        if self._pinned:
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostUnregister(self._pinned)
            self._pinned = 0

    def _wait_ready(self) -> None:
        if self._ready is not None:
            self._ready.join()
            self._ready = None

    def _running(self) -> bool:
        return self._writer is not None and self._writer.poll() is None

    def _start(self) -> None:
        """Start a new writer and tell it how the memory is laid out. Raises OSError."""
        self._stop()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._writer = subprocess.Popen(  # noqa: S603  our own module, by the interpreter that runs us
            [sys.executable, "-P", "-m", "harness.checkpoint.writer_process", str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._memory],
            start_new_session=True,  # a signal to the process group is for the rank, which waits for its writer
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._writer.stdin is not None and self._writer.stdout is not None  # noqa: S101, PT018  asked for above
        self._lines = JsonLineReader(self._writer.stdout.fileno())
        send(self._writer.stdin.fileno(), {"pieces": self._shapes, "bytes": self._size})

    def _stop(self, limit_s: float = 0.0) -> None:
        """End the writer: it ends when its input is closed."""
        if self._writer is None:
            return
        assert self._writer.stdin is not None and self._writer.stdout is not None  # noqa: S101, PT018  asked for
        self._writer.stdin.close()
        try:
            self._writer.wait(limit_s or 1.0)
        except subprocess.TimeoutExpired:
            self._writer.kill()
            self._writer.wait()
        self._writer.stdout.close()
        self._writer = None
