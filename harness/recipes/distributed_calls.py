"""Which calls into torch.distributed a recipe's code makes, seen by Python's profile hook: for one pass, before the first step."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch.distributed as dist

from harness.config.user_errors import is_own

_COLLECTIVES = (
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "all_to_all_single", "barrier"),
    *("broadcast", "broadcast_object_list", "gather", "gather_object", "reduce", "reduce_scatter", "reduce_scatter_tensor"),
    *("scatter", "scatter_object_list", "send", "recv", "isend", "irecv", "batch_isend_irecv"),
)
_FUNCTIONAL = ("all_gather_tensor", "all_reduce", "all_to_all_single", "broadcast", "reduce_scatter_tensor")
_FUNCTIONAL_FILE = "/torch/distributed/_functional_collectives.py"
"""Collectives that compiled code uses, known by their file: most runs never import it."""
_QUESTIONS = ("get_rank", "get_world_size", "is_initialized")
_BACKENDS = ("/torch/distributed/fsdp/", "/torch/distributed/_composable/", "/torch/distributed/tensor/", "/deepspeed/")
"""Modules whose collectives belong to the backend and not to the recipe."""
_BETWEEN = (
    *("/torch/distributed/", "/torch/_dynamo/", "/contextlib.py", "/typing_extensions.py", "/warnings.py"),
    "/harness/recipes/gathers.py",
)
"""Modules whose frames are skipped between a collective and its caller."""


@contextmanager
def watched_calls(begun: set[str]) -> Iterator[None]:
    """Inside the context, `begun` gets the names of the collectives that the recipe's code or its model begins; not those of a
    backend."""

    codes = _codes(dist, _COLLECTIVES)

    def seen(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (frame.f_code in codes or _functional(frame.f_code)) and not _by_backend(frame):
            begun.add(frame.f_code.co_name)

    with _profiled(seen):
        yield


@contextmanager
def watched_questions(asked: set[str]) -> Iterator[None]:
    """Inside the context, `asked` gets the names of the functions that users' code calls to gather over ranks or to count them."""
    codes = _codes(dist, (*_COLLECTIVES, *_QUESTIONS))

    def seen(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        accelerate = code.co_name in _COLLECTIVES and code.co_filename.endswith("/accelerate/utils/operations.py")
        if event == "call" and (accelerate or code in codes or _functional(code)) and _asked_by_user(frame):
            asked.add(code.co_name)

    with _profiled(seen):
        yield


@contextmanager
def _profiled(hook: Any) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(before)


@lru_cache
def _codes(module: Any, names: tuple[str, ...]) -> frozenset[CodeType]:
    """The code of functions of a module, without what they are wrapped in."""
    return frozenset(inspect.unwrap(getattr(module, name)).__code__ for name in names)


def _functional(code: CodeType) -> bool:
    """Whether this is one of the functional collectives."""
    return code.co_name in _FUNCTIONAL and code.co_filename.endswith(_FUNCTIONAL_FILE)


def _by_backend(frame: FrameType) -> bool:
    """Whether a backend asked for the collective that begins here."""
    at = frame.f_back
    while at is not None:
        file = Path(at.f_code.co_filename).as_posix()
        if any(part in file for part in _BACKENDS):
            return True
        if not any(part in file for part in _BETWEEN):
            return False
        at = at.f_back
    return False


def _asked_by_user(frame: FrameType) -> bool:
    """Whether users' code called, directly or through a method of a library of collectives."""
    at = frame.f_back
    while at is not None and any(part in at.f_code.co_filename for part in (*_BETWEEN, "/accelerate/")):
        at = at.f_back
    return at is not None and is_own(at.f_code.co_filename)
