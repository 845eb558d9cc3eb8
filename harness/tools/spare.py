"""`python -m harness.tools.spare RUN.yaml [--section.field VALUE ...]`: all imports of a rank done, idle until ranks are wanted.

The launcher holds its standard input open, and writes a line of JSON there when all ranks start again: an argv, and the environment
of each rank. Each is then a fork of this process, and they share the pages of what it has imported. On standard output go `ready`,
`ended STATUS` where all ranks of a start have ended, and, where this process cannot be forked, why. It ends with its input; the
ranks notice then that their parent is gone.
"""

import gc
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness.config.flags import Parser, add_settings, parse
from harness.config.loader import load
from harness.config.schema import Config
from harness.supervision.exit_codes import run_rank


def main(argv: Sequence[str]) -> int:
    """Import, and serve until the launcher is gone."""
    words = os.dup(1)
    os.dup2(2, 1)  # what an import prints is for the log
    parser = Parser(prog="python -m harness.tools.spare", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file")
    parser.add_argument("--no-plan", action="store_true", help="as for a rank")
    add_settings(parser)
    args, settings = parse(parser, argv)
    if problem := _import(load(args.run, settings)):
        _say(words, problem)
        return 1
    gc.collect()
    gc.freeze()  # else the first collection of every rank copies the pages of all that is shared
    _say(words, "ready")
    wanted = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in wanted:
        order = json.loads(line)
        ranks = [_fork(order["argv"], environ, (words, wanted.fileno())) for environ in order["environs"]]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        _say(words, f"ended {next(filter(None, statuses), 0)}")
    return 0


def _import(config: Config) -> str:
    """Import what a rank of this run imports, but for the user's own code; why ranks cannot be forks of it, or nothing.

    A process that has talked to CUDA's driver cannot be forked: torch counts devices by NVML here.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    import harness.worker  # noqa: F401
    from harness.engine.device import use_cpu
    from harness.engine.factory import import_backend
    from harness.recipes.base import import_built_in

    import_backend(config.backend.name, cpu=use_cpu(os.environ))
    import_built_in(config.recipe)
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return "an import has begun to use a GPU" if begun else ""


def _fork(argv: Sequence[str], environ: dict[str, str], close: Sequence[int]) -> int:
    """Start a rank; its process."""
    pid = os.fork()
    if not pid:
        _be_rank(argv, environ, close)
    return pid


def _be_rank(argv: Sequence[str], environ: dict[str, str], close: Sequence[int]) -> NoReturn:
    """What an interpreter would find that is started as `python -m harness`."""
    from harness.__main__ import main as rank

    for handle in close:
        os.close(handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.argv = [str(Path(sys.modules["harness"].__path__[0]) / "__main__.py"), *argv]
    run_rank(rank, os.environ)


def _say(words: int, text: str) -> None:
    os.write(words, f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
