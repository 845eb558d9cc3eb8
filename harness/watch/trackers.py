"""Other trackers by name, through Accelerate's own classes: tensorboard, mlflow, trackio and whatever else it has.

Of the three it has more to say: their files lie in the run folder, a resume continues the run, and notices are text there.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import orjson
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from harness.config.errors import UserError, did_you_mean
from harness.config.run_folder import RunFolder
from harness.config.schema import WatchConfig
from harness.supervision.exit_codes import EXIT, STOPPED
from harness.supervision.safe_files import make_inside, read_own, write_own
from harness.telemetry.events import Ended, Evaluated, Event, Histograms, Noticed, Started, Windowed
from harness.telemetry.histograms import Histogram
from harness.watch.isolation import describe
from harness.watch.wandb_names import DEFAULT_PROJECT

LONGEST = 4_000
"""Characters of a value of the config or a notice that are handed over; MLflow takes 6,000 of one and 5,000 of the other."""


def check_tracker(name: str) -> None:
    """Raises UserError if Accelerate does not know the tracker, or its package is not installed."""
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(
            "watch.trackers", f"{name!r} is not a tracker that Accelerate has", did_you_mean(name, list(LOGGER_TYPE_TO_CLASS))
        )
    if name not in map(str, get_available_trackers()):
        raise UserError("watch.trackers", f"the package of {name} is not installed", f"pip install {name}")


class Tracker:
    """Any tracker of Accelerate's: one run in `project` for each start, numbers and config alone."""

    def __init__(self, name: str, watch: WatchConfig, folder: Path) -> None:
        self.kind: Any = LOGGER_TYPE_TO_CLASS[name]
        self.project, self.run, self.folder = watch.project or DEFAULT_PROJECT, watch.name or folder.name, folder
        self.own: Any = self.opened()
        self.own.start()

    def opened(self) -> Any:
        """Accelerate's object."""
        return self.kind(self.project, logging_dir=self.folder) if self.kind.requires_logging_directory else self.kind(self.project)

    def begin(self, config: dict[str, Any]) -> None:
        """The run begins, or continues, with this config, flattened."""
        self.own.store_init_configuration(config)

    def log(self, values: dict[str, float], samples: int) -> None:
        """A point."""
        self.own.log(values, step=samples)

    def notice(self, code: str, text: str, samples: int) -> None:
        """A notice. Nothing where a tracker has no place for text."""

    def histograms(self, found: Mapping[str, Histogram], samples: int) -> None:
        """Histograms. Nothing where a tracker has none in this form."""

    def end(self, status: int) -> None:
        """The run ended with this exit status."""
        self.own.finish()


@final
class TensorBoard(Tracker):
    """A folder PROJECT/RUN of event files; a resume writes another of them there, which continues the curves."""

    def opened(self) -> Any:
        place = RunFolder(self.folder).tracker("tensorboard") / _as_name(self.project)
        return self.kind(_as_name(self.run), logging_dir=place)

    def begin(self, config: dict[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
        self.own.writer.add_text("config", f"| setting | value |\n|---|---|\n{rows}")
        numbers = {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}
        self.own.writer.add_hparams(numbers, {}, run_name=".")  # else it would make a run of its own at each start
        self.own.writer.flush()

    def notice(self, code: str, text: str, samples: int) -> None:
        self.own.writer.add_text(f"notice/{code}", text, samples)

    def histograms(self, found: Mapping[str, Histogram], samples: int) -> None:
        for name, h in found.items():
            if h.counts:
                pairs = list(zip(h.counts, h.middles, strict=True))
                total, square = sum(n * x for n, x in pairs), sum(n * x * x for n, x in pairs)
                ends = h.edges[0], h.edges[-1], sum(h.counts), total, square
                self.own.writer.add_histogram_raw(name, *ends, h.edges[1:], h.counts, global_step=samples)


@final
class MLflow(Tracker):
    """A run of the experiment PROJECT, in the run folder unless MLFLOW_TRACKING_URI says otherwise; a resume continues it."""

    def opened(self) -> Any:
        import mlflow

        self._files = RunFolder(self.folder).tracker("mlflow")
        make_inside(self._files)
        artifacts = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            artifacts = (self._files.resolve() / "artifacts").as_uri()
            mlflow.set_tracking_uri(f"sqlite:///{self._files.resolve() / 'mlflow.db'}")
        kept = (read_own(self._files / "run_id") or "").strip()
        known = re.fullmatch(r"[0-9a-f]{32}", kept)
        return self.kind(self.project, logging_dir=artifacts, run_id=kept if known else None, run_name=self.run)

    def begin(self, config: dict[str, Any]) -> None:
        import mlflow

        write_own(self._files / "run_id", self.own.tracker.info.run_id)
        known = mlflow.get_run(self.own.tracker.info.run_id).data.params
        self.own.store_init_configuration({n: v for n, v in config.items() if n not in known})  # MLflow lets no parameter change

    def notice(self, code: str, text: str, samples: int) -> None:
        import mlflow

        mlflow.set_tag(f"notice.{code}", f"at {samples:,} samples: {text}")

    def end(self, status: int) -> None:
        import mlflow

        mlflow.end_run("FINISHED" if status == 0 else "KILLED" if status == STOPPED else "FAILED")


@final
class Trackio(Tracker):
    """A run of the project PROJECT, in the run folder unless TRACKIO_DIR says otherwise; a resume continues it."""

    def opened(self) -> Any:
        os.environ.setdefault("TRACKIO_DIR", str(RunFolder(self.folder).tracker("trackio").resolve()))
        return self.kind(self.project, name=self.run, resume="allow", embed=False)

    def notice(self, code: str, text: str, samples: int) -> None:
        self.own.log({f"notice/{code}": text}, step=samples)


KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "trackio": Trackio}


@final
class TrackerWatcher:
    """Logs windows, evaluations and notices over samples to one tracker."""

    def __init__(self, name: str, watch: WatchConfig, folder: Path) -> None:
        check_tracker(name)
        self._status = 1
        self._over = False
        try:
            self._tracker = KINDS.get(name, Tracker)(name, watch, folder)
        except UserError:
            raise
        except Exception as e:  # a tracker's own code, or its service, may raise anything
            raise UserError("watch.trackers", f"{name} does not start: {describe(e)}", "fix that, or leave it out") from e

    def __call__(self, event: Event) -> None:
        """Log what the tracker has a place for."""
        match event:
            case Started():
                self._tracker.begin(flat({"run": event.config, "plan": event.plan.to_json()}))
            case Windowed() | Evaluated():
                self._tracker.log({n: value for n, value in event.metrics.items() if value is not None}, event.samples)
            case Histograms():
                self._tracker.histograms(event.histograms, event.samples)
            case Noticed():
                self._tracker.notice(event.code, event.message[:LONGEST], event.samples)
            case Ended():
                self._status = EXIT[event.reason]
                with suppress(KeyError):
                    self._tracker.notice(f"end_{event.reason}", event.message[:LONGEST] or event.reason, event.samples)
                self.close()
            case _:
                pass

    def close(self) -> None:
        """Finish the run there, if that is not done."""
        if not self._over:
            self._over = True
            self._tracker.end(self._status)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one, names joined by dots: {"run.optim.lr": 0.1}. Lists become text, None is left out."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        elif isinstance(value, bool | int | float):
            found[key] = value
        elif value is not None:
            found[key] = (value if isinstance(value, str) else orjson.dumps(value).decode())[:LONGEST]
    return found


def _as_name(name: str) -> str:
    """The name of a folder: of letters, digits, `_`, `-` and dots that do not lead; what else there is becomes `_`."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"
