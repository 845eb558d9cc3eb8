"""Other trackers by name, through Accelerate's own classes: tensorboard, trackio, mlflow, ... No code of ours for any of them."""

import json
from pathlib import Path
from typing import Any, final

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from harness.config.errors import UserError, did_you_mean
from harness.telemetry.events import Ended, Evaluated, Event, Started, Windowed
from harness.watch.isolation import describe


def check_tracker(name: str) -> None:
    """Raises UserError if Accelerate does not know the tracker, or its package is not installed."""
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(
            "watch.trackers", f"{name!r} is not a tracker that Accelerate has", did_you_mean(name, list(LOGGER_TYPE_TO_CLASS))
        )
    if name not in map(str, get_available_trackers()):
        raise UserError("watch.trackers", f"the package of {name} is not installed", f"pip install {name}")


@final
class TrackerWatcher:
    """Logs windows and evaluations over samples to one of Accelerate's trackers, into the run folder where it writes files."""

    def __init__(self, name: str, folder: Path) -> None:
        check_tracker(name)
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        try:
            self._tracker = kind(folder.name, logging_dir=folder) if kind.requires_logging_directory else kind(folder.name)
            self._tracker.start()
        except Exception as e:  # a tracker's own code, or its service, may raise anything
            raise UserError("watch.trackers", f"{name} does not start: {describe(e)}", "fix that, or leave it out") from e

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
