"""Whether this user made a run folder: seals of the code and stores that its run file names, by a key that no run folder holds.

A run file is code that the user chose to run. A folder that was downloaded looks like data, and its run file names code all the
same. Only names are sealed, so that the other settings may be changed by hand. Where no home keeps the key there are no seals.
"""

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.supervision.safe_files import append_own, read_own, write_once


def foreign(config: Config) -> dict[str, str]:
    """By setting: the code that is not built in and that a run file names, and the store that checkpoints are fetched from."""
    place = config.checkpoint.dir or ""
    named = {
        "recipe.use": config.recipe.use if ":" in config.recipe.use else "",
        "optim.name": config.optim.name if ":" in config.optim.name else "",
        "scaling.rule": config.scaling.rule if ":" in config.scaling.rule else "",
        "watch.use": ", ".join(config.watch.use),
        "checkpoint.dir": place if "://" in place else "",
    }
    return {setting: name for setting, name in named.items() if name}


def seal(folder: Path, config: Config) -> None:
    """Write down that this user's run in `folder` used what `config` names. Raises UserError."""
    key = _key(make=True) if foreign(config) else ""
    for setting, name in foreign(config).items():
        if key and not is_sealed(folder, setting, name):
            with suppress(OSError), append_own(RunFolder(folder).seal) as file:
                file.write(_line(key, setting, name) + b"\n")


def is_sealed(folder: Path, setting: str, name: str) -> bool:
    """Whether this user's run in `folder` used `name`. Raises UserError."""
    key = _key(make=False)
    try:
        lines = (read_own(RunFolder(folder).seal) or "").encode().split()
    except OSError:
        return False
    return bool(key) and any(hmac.compare_digest(_line(key, setting, name), line) for line in lines)


def _line(key: str, setting: str, name: str) -> bytes:
    return hmac.new(key.encode(), f"{setting} {name}".encode("utf-8", "surrogateescape"), "sha256").hexdigest().encode()


def _key(*, make: bool) -> str:
    """The user's own key; empty if there is none."""
    try:
        place = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "widebatch" / "key"
        if make:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return write_once(place, secrets.token_hex(32))
        return read_own(place) or ""
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return ""
