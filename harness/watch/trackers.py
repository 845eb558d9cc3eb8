"""Other trackers by name, through Accelerate's own classes: tensorboard, trackio, mlflow, ... No code of ours for any of them."""

import json
from pathlib import Path
from typing import Any, final

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from harness.plan.errors import UserError, did_you_mean
from harness.stats.events import Ended, Evaluated, Event, Started, Windowed


@final
class TrackerWatcher:
    """Logs windows and evaluations over samples to one of Accelerate's trackers, into the run folder where it writes files."""

    def __init__(self, name: str, folder: Path) -> None:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(
                "watch.trackers", f"{name!r} is no tracker of Accelerate's", did_you_mean(name, list(LOGGER_TYPE_TO_CLASS))
            )
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        try:
            self._tracker = kind(folder.name, logging_dir=folder) if kind.requires_logging_directory else kind(folder.name)
        except ImportError as e:
            raise UserError("watch.trackers", f"{name} is not installed ({e})", f"pip install {name}") from e
        self._tracker.start()

    def __call__(self, event: Event) -> None:
        """Log what has numbers."""
        match event:
            case Started():
                self._tracker.store_init_configuration({"run": json.dumps(event.config), "plan": json.dumps(event.plan.to_json())})
            case Windowed() | Evaluated():
                known = {name: value for name, value in event.metrics.items() if value is not None}
                self._tracker.log(known, step=event.samples)
            case Ended():
                self._tracker.finish()
            case _:
                pass
