"""A folder that a run writes to, by its handle: if it is renamed, writing continues there; if removed, it is not made again."""

import os
from pathlib import Path
from typing import final

_DELETED = " (deleted)"


@final
class HeldFolder:
    """The folder that `path` led to when this was made. Raises OSError if there is none."""

    def __init__(self, path: Path) -> None:
        self._path, self._absolute = path, path.absolute()
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.inside = f"/proc/{os.getpid()}/fd/{self._fd}"
        """A path to the open folder for this process and its children, as long as this process holds it."""

    @property
    def removed(self) -> bool:
        """Whether it is gone: nothing can be written into it any more."""
        try:
            Path(self.inside).stat()
        except OSError:  # a network file system no longer knows the handle
            return True
        return self._led_to().endswith(_DELETED)

    @property
    def now(self) -> Path:
        """Its path: as the user gave it while that is right, or after it was removed; else its new path."""
        return self._path if self.removed or not self.moved() else Path(self._led_to())

    def moved(self) -> str:
        """A message if its path no longer leads to it; else empty."""
        try:
            if self._absolute.samefile(self.inside):
                return ""
        except OSError:
            pass
        what = "removed, or moved to another disk" if self.removed else f"renamed to {self._led_to()}"
        return f"{self._path} was {what}"

    def shown(self, text: str) -> str:
        """`text` with the path as the user gave it."""
        return text.replace(self.inside, str(self._path))

    def close(self) -> None:
        """Release the handle."""
        os.close(self._fd)

    def _led_to(self) -> str:
        return str(Path(self.inside).readlink())
