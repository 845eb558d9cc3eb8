"""Whether W&B is used, and how: `watch.wandb` and, where that is unset, W&B's own variables. These can always switch it off."""

from collections.abc import Mapping
from typing import Literal

from harness.config.errors import UserError, did_you_mean

Mode = Literal["off", "offline", "online"]
SWEEP = "WANDB_SWEEP_ID"
"""The variable by which `wandb agent` says that it started this process."""
_DISABLED = dict.fromkeys(("true", "1", "yes", "on"), "off") | dict.fromkeys(("false", "0", "no", "off"), "")
_MODES = {
    "online": "online",
    "offline": "offline",
    "disabled": "off",
    "dryrun": "offline",
    "run": "online",
    "shared": "shared",
}
"""What each value of WANDB_DISABLED (as transformers reads it) and of WANDB_MODE asks for; empty: nothing."""


def requested_mode(asked: Mode | None, environ: Mapping[str, str]) -> tuple[Mode, str]:
    """(what is done, what to say of it). Raises UserError on a value of these variables that W&B does not know."""
    if asked == "off":
        return asked, ""
    mode: Mode = asked or ("online" if SWEEP in environ else "offline")
    for name, value, meanings in (
        ("WANDB_DISABLED", environ.get("WANDB_DISABLED", "").lower(), _DISABLED),
        ("WANDB_MODE", environ.get("WANDB_MODE", ""), _MODES),
    ):
        if value and value not in meanings:
            raise UserError(name, f"is {value!r}", f"{did_you_mean(value, list(meanings))}, or unset it")
        wanted = meanings.get(value, "")
        if wanted == "off":
            return "off", f"{name}={value}: no W&B run"
        if asked is None and wanted in ("offline", "online"):
            mode = "online" if wanted == "online" else "offline"
        elif wanted not in ("", mode):
            why = f"watch.wandb is {asked}" if asked else "here one process writes a run"
            return mode, f"{name}={value} is ignored: {why}"
    return mode, ""
