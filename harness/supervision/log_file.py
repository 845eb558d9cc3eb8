"""A log of a run, opened by the handles of its folders: a link that is put in the place of one of them leads nowhere.

The folders are looked at when a run starts (safe_files.py); who can write into the run folder may swap one afterwards.
"""

import os
from contextlib import ExitStack
from pathlib import Path

from harness.config.run_folder import LOGS

_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def open_log(path: Path, flags: int) -> int:
    """A descriptor of `RUN/logs/FILE` or `RUN/logs/HOST/FILE`, with these flags, created if missing.

    RUN itself may be a link. Raises OSError (ELOOP) where `logs`, HOST or FILE is one.
    """
    *folders, name = path.absolute().parts
    within = next((at for at in (len(folders) - 2, len(folders) - 1) if folders[at] == LOGS), len(folders))
    with ExitStack() as stack:

        def opened(folder: str, flags: int, inside: int | None = None) -> int:
            handle = os.open(folder, flags, dir_fd=inside)
            stack.callback(os.close, handle)
            return handle

        here = opened(str(Path(*folders[:within])), os.O_RDONLY | os.O_DIRECTORY)
        for folder in folders[within:]:
            here = opened(folder, _FOLDER, here)
        return os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=here)
