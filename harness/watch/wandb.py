"""Weights & Biases, on rank 0: windows and evaluations over samples, the run file and the plan as config, nothing else.

Points are numbered on over all starts of a run (wandb_segments.py); the x-axis is progress/samples. A thread of its own does all of
it, the import of wandb too, so that the training thread waits for nothing; a server that has not answered in ANSWER_S counts as
unreachable, and the run is logged offline.
"""

import math
import netrc
import os
import queue
import re
import secrets
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, final
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from harness.analysis.run_record import best_by
from harness.analysis.wandb_segments import drop_empty, points_so_far
from harness.config.run_folder import JOURNAL, RunFolder
from harness.config.schema import WatchConfig
from harness.supervision.exit_codes import EXIT, FAILED, STOPPED
from harness.supervision.output_redirect import say
from harness.supervision.resume_command import resume_command
from harness.supervision.safe_files import write_once, write_own
from harness.supervision.temporary_folders import own
from harness.telemetry.events import Ended, Evaluated, Event, Histograms, Noticed, Saved, Shown, Started, Stepped, Windowed
from harness.watch.git_info import commit, uncommitted_changes
from harness.watch.isolation import Isolated, describe
from harness.watch.wandb_names import RUN_ID, run_names

if TYPE_CHECKING:
    import wandb

ANSWER_S = 2.5
"""How long the service may take to answer at the start before it counts as unreachable."""
BEGIN_S = 30.0
"""How long a service that has answered may take to begin the run."""
FINISH_S = 8
SLOW_START_S = 60
"""How long the end of a run waits for a start that is not over: wandb is large, and a machine may be busy."""
WAITING = 10_000
"""How many points may be queued for the writing thread; further ones are dropped and counted."""
GROUPS = ("train", "eval", "batch", "throughput", "memory", "system", "stability", "reliability", "pause", "weights", "gradients")
LEVELS = {
    "ERROR": ("failed", "guard", "unsaved", "dead", "divergence", "checkpoint_failed"),
    "WARN": (
        "nonfinite", "spike", "erratic", "spared", "back_off", "warm_up", "roll_back", "past_noise_scale", "slow", "straggler",
        "stale_checkpoint", "damaged_checkpoint", "bad_samples", "data_worker", "out_of_memory",
    ),
    "INFO": ("resumed", "restarted", "batch"),
}  # fmt: skip
"""Notices and ends that W&B also sends as alerts, by level: the run is lost or will be; look at it; good to know."""
ALERTS = {code: level for level, codes in LEVELS.items() for code in codes}
ALERT_EVERY_S = 300
"""An alert of one code is sent at most once in so many seconds."""


@final
class WandbWatcher:
    """Logs to one W&B run per run folder: its id is kept there, so that a resumed run continues in the same place."""

    def __init__(self, watch: WatchConfig, folder: Path) -> None:
        self._watch, self._folder = watch, folder
        self._names = run_names(watch, os.environ, folder)
        self._run: Any = None
        self._point, self._status = 0, FAILED  # the status until an `Ended` event arrives
        self._events: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._take = Isolated("W&B", self._tell)
        self._dropped = self._told = 0
        self._histograms: dict[str, Any] = {}  # they go with their window's point
        self._alerted: dict[str, float] = {}
        self._writer = threading.Thread(target=self._write, name="wandb writer", daemon=True)

    def __call__(self, event: Event) -> None:
        """Queue an event for the writing thread."""
        if isinstance(event, Stepped):
            return
        if isinstance(event, Started):
            self._writer.start()
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        """The writing thread, to the end of the events. One that W&B cannot take is reported and counted."""
        while (event := self._events.get()) is not None:
            self._take(event)
            self._told += 1

    def _tell(self, event: Event) -> None:
        """Log what has numbers."""
        if self._run is None and not isinstance(event, Started):
            self._take.miss(event)
            return
        match event:
            case Started():
                self._start(event)
            case Histograms():
                self._histograms = histograms_of(event)
            case Windowed() | Evaluated():
                histograms, self._histograms = self._histograms, {}
                self._log(histograms | known(event.metrics | {"reliability/log_points_dropped": self._dropped + self._take.missed}))
            case Shown():
                self._log({"progress/samples": event.samples, "eval/examples": table(event.rows)})
            case Saved():
                self._log({"progress/samples": event.samples, "reliability/checkpoint_bytes": event.bytes})
                if self._watch.artifacts:
                    self._refer(event.path, event.samples)
            case Noticed():
                self._run.summary[f"notice/{event.code}"] = event.message
                if event.code in ALERTS:
                    self._alert(event.code, event.message)
            case Ended():
                self._end(event)
            case _:
                pass

    def _end(self, event: Ended) -> None:
        """How the run ended: its summary, and what `finish` tells."""
        self._status = EXIT[event.reason]
        if event.reason in ALERTS:
            self._alert(event.reason, event.message)
        if self._status == STOPPED:
            self._run.mark_preempting()
        self._run.summary.update({"end/reason": event.reason, "end/message": event.message, **known(event.metrics)})

    def _log(self, row: dict[str, Any]) -> None:
        """Log a point, under the next number."""
        self._run.log(row, step=self._point, commit=True)
        self._point += 1

    def close(self) -> None:
        """Hand over what waits, and finish. A server that is gone costs about FINISH_S; its points stay on disk."""
        told = -1
        if self._writer.is_alive():
            self._events.put(None)
        while self._writer.is_alive() and self._told > told:  # wait as long as events are still being taken
            told = self._told
            self._writer.join(FINISH_S if self._told else SLOW_START_S)
        if self._writer.is_alive():
            say(f"W&B stopped accepting events: {self._events.qsize()} are only in {JOURNAL}")
        self._take.close()
        if self._run is None:
            return
        last = threading.Thread(target=self._finish, name="wandb finish", daemon=True)
        last.start()
        last.join(FINISH_S + 1)
        if last.is_alive():  # finish_timeout fails if the service dies at a bad moment: about one time in twelve
            say(f"W&B does not answer: {self._sync()}")
            end_service()
            last.join(FINISH_S)

    def _finish(self) -> None:
        try:
            self._run.finish(exit_code=self._status)
            say(f"W&B    {self._where()}")
        except Exception as e:  # noqa: BLE001  whatever it is, the run is over and its points are on disk
            say(f"W&B did not take everything ({describe(e)}): {self._sync()}")

    def _refer(self, path: str, samples: int) -> None:
        """A checkpoint as an artifact that holds its manifest, where that is on a disk, and refers to the rest where it lies.

        One that newer ones have replaced meanwhile has nothing left to refer to, and is no artifact.
        """
        import wandb

        artifact = wandb.Artifact(f"checkpoint-{self._run.id}", "checkpoint", metadata={"samples": samples, "path": path})
        if "://" in path:
            artifact.add_reference(path, name="files", checksum=False)
        else:
            try:
                artifact.add_file(str(Path(path) / "manifest.json"))
                artifact.add_reference(f"file://{Path(path).resolve()}", name="files", checksum=False)
            except (ValueError, FileNotFoundError):
                return
        self._run.log_artifact(artifact)

    def _alert(self, code: str, text: str) -> None:
        """Send an alert, unless one of its code has just been sent: W&B's own wait_duration is left to the service."""
        now = time.monotonic()
        if now - self._alerted.get(code, -math.inf) >= ALERT_EVERY_S:
            self._alerted[code] = now
            self._run.alert(title=code, text=text, level=ALERTS[code])

    def _where(self) -> str:
        """The address at which the run can be seen."""
        return f"offline: {self._sync()}" if self._run.offline else str(self._run.url)

    def _sync(self) -> str:
        own = "*run-*" if self._names.dir == self._folder else f"*run-*-{self._run.id}"
        return f"send it later with `wandb sync --include-online {quote(str(RunFolder(self._names.dir).wandb))}/{own}`"

    def _start(self, event: Started) -> None:
        import wandb

        names = self._names
        run_id = wandb_id(self._folder, names.id)
        drop_empty(self._folder)
        mode: Literal["online", "offline"] = "online" if self._watch.wandb == "online" else "offline"
        problem = unreachable(ANSWER_S) if mode == "online" else ""
        settings = wandb.Settings(
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
            console="off",
            silent=True,
            init_timeout=BEGIN_S,
            finish_timeout=FINISH_S,
        )
        options: dict[str, Any] = {
            "project": names.project,
            "entity": names.entity,
            "id": run_id,
            "name": names.name,
            "group": names.group,
            "job_type": names.job_type,
            "tags": names.tags,
            "notes": names.notes,
            "dir": str(names.dir),
            "config": {"run": event.config, "plan": event.plan.to_json(), "commit": commit(Path.cwd())} | overview(event),
            "resume": "allow" if mode == "online" else None,
            "settings": settings,
        }
        if not problem:
            try:
                self._run = wandb.init(mode=mode, **options)
            except Exception as e:  # wandb raises many kinds of errors; without the service the run must start offline
                if mode == "offline":
                    raise
                problem = describe(e)
                wandb.teardown()  # the W&B service of the failed start still has the run's id
        if problem:
            say(f"W&B cannot be reached ({problem})")
            self._run = wandb.init(mode="offline", **(options | {"resume": None}))
        own_folders()
        self._point = max(points_so_far(RunFolder(self._folder).journal), self._run.step)
        say(f"W&B    {self._where()}")
        self._run.summary["best/chosen_by"] = best_by(event.config)
        self._run.summary["batch/noise_scale_estimator"] = event.estimator
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric="progress/samples")


def own_folders() -> None:
    """Mark what wandb keeps in the temporary folder as this run's, so that it is removed where the run is killed.

    wandb does not publish where that is. Where a version keeps it elsewhere, it is left to that version.
    """
    with suppress(ImportError, AttributeError, OSError):
        from wandb import Artifact
        from wandb.sdk.data_types._private import MEDIA_TMP

        own(Path(Artifact._TMP_DIR.name))
        own(Path(MEDIA_TMP.name), beside=_sockets(Path(tempfile.gettempdir())))


def _sockets(folder: Path) -> list[Path]:
    """Where this process's W&B service listens, wandb-PID-SERVICE-*, and where its system monitor does, wandb_symon-SERVICE-*."""
    services = list(folder.glob(f"wandb-{os.getpid()}-*"))
    return services + [monitor for one in services for monitor in folder.glob(f"wandb_symon-{one.name.split('-')[2]}-*")]


def wandb_id(folder: Path, given: str = "") -> str:
    """The id of the folder's run in W&B: as `given`, else drawn; written down, and kept until another is given.

    Raises ValueError if the file holds something else.
    """
    path = RunFolder(folder).wandb_id
    found = write_once(path, given or secrets.token_hex(4)).strip()
    if given and found != given:
        write_own(path, given)
        say(f"note   WANDB_RUN_ID={given} takes the place of the run's id in W&B so far, {found[:64]!r}")
        return given
    if not re.fullmatch(RUN_ID, found):
        raise ValueError(f"{path} holds {found[:20]!r}, which is not a run id: remove the file for a new run in W&B")
    return found


def overview(event: Started) -> dict[str, Any]:
    """What W&B shows of a run beside its run file and plan: a list that names each value, so that no secret is among them."""
    return {
        "command": resume_command(event.folder, event.plan, event.device),
        "uncommitted_changes": uncommitted_changes(Path.cwd()),
        "parameters": event.parameters,
        "trained_parameters": event.trained,
        "device": event.device.partition(":")[0],
        "environment": event.environment,
    }


def known(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that have a value; null has no place on a curve."""
    return {name: value for name, value in metrics.items() if value is not None}


def histograms_of(event: Histograms) -> dict[str, Any]:
    """Each histogram that holds a value, as W&B shows it."""
    import wandb

    found = {name: h for name, h in event.histograms.items() if h.counts}
    return {name: wandb.Histogram(np_histogram=(np.array(h.counts), np.array(h.edges))) for name, h in found.items()}


def end_service() -> None:
    """End the processes that wandb started beside this one, and with them whatever waits for them. What is on disk stays."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition(") ")
        except OSError:
            continue
        if int(rest.split()[1]) == os.getpid() and "wandb-core" in name:
            os.kill(int(stat.parent.name), signal.SIGKILL)


def table(rows: list[dict[str, Any]]) -> "wandb.Table":
    """Examples as a table; what has a shape is an image."""
    import wandb

    columns: list[str | int] = list(rows[0])
    cells = [[wandb.Image(value) if isinstance(value, Tensor) else value for value in row.values()] for row in rows]
    return wandb.Table(columns=columns, data=cells)


def base_url() -> str:
    """Where the service is."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)


def has_key() -> bool:
    """Whether there is a key for the service: in the environment, or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        kept = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return kept.authenticators(urlsplit(base_url()).hostname or "") is not None


def unreachable(limit_s: float) -> str:
    """Why the service cannot be used, or nothing. Asks it once, and waits no longer than `limit_s`."""
    base = base_url()
    if not base.startswith(("http://", "https://")):
        return f"WANDB_BASE_URL {base!r} is not an http address"
    body = b'{"query": "query Viewer { viewer { id } }"}'
    request = urllib.request.Request(f"{base}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310  http, as checked
    try:
        with urllib.request.urlopen(request, timeout=limit_s):  # noqa: S310
            return ""
    except urllib.error.HTTPError as e:
        return f"HTTP {e.code}" if e.code >= 500 or e.code == 429 else ""
    except OSError as e:
        return str(e)
