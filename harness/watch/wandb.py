"""Weights & Biases, on rank 0: windows and evaluations over samples, the run file and the plan as config, nothing else.

`step=` is never passed: W&B drops points that come with a lower one, as after a resume. The x-axis is progress/samples. A thread of
its own does all of it, the import of wandb too, so that the training thread waits for nothing; a server that has not answered in
START_S is out of reach, and the run is logged offline.
"""

import math
import netrc
import os
import queue
import secrets
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from torch import Tensor

from harness.plan.config import WatchConfig
from harness.stats.events import Ended, Evaluated, Event, Noticed, Saved, Shown, Started, Stepped, Windowed
from harness.watch.git import commit

if TYPE_CHECKING:
    import wandb

START_S = 5.0
"""What the start may wait for the service, in all."""
FINISH_S = 8
SLOW_START_S = 60
"""How long the end of a run waits for a start that is not over: wandb is large, and a machine may be busy."""
WAITING = 10_000
"""Points that may wait for the writing thread; more are dropped, and counted."""
GROUPS = ("train", "eval", "batch", "throughput", "memory", "stability", "reliability", "pause")
ALERTS = (
    "nonfinite", "spike", "divergence", "dead", "past_noise_scale", "slow", "checkpoint_failed", "stale_checkpoint",
    "damaged_checkpoint", "resumed", "bad_samples", "data_worker", "straggler",
    "erratic", "spared", "back_off", "warm_up", "roll_back", "batch", "out_of_memory",
)  # fmt: skip
"""Notices that W&B also sends as alerts, each code at most once in ALERT_EVERY_S."""
ALERT_EVERY_S = 300


@final
class WandbWatcher:
    """Logs to one W&B run per run folder: its id is kept there, so that a resumed run goes on in the same place."""

    def __init__(self, watch: WatchConfig, folder: Path) -> None:
        self._watch, self._folder = watch, folder
        self._run: Any = None
        self._events: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._dropped = self._told = 0
        self._alerted: dict[str, float] = {}
        self._writer = threading.Thread(target=self._write, name="wandb writer", daemon=True)

    def __call__(self, event: Event) -> None:
        """Leave an event to the writing thread."""
        if isinstance(event, Stepped):
            return
        if isinstance(event, Started):
            self._writer.start()
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        """The writing thread, to the end of the events. An error of W&B's own ends it with a traceback, and training goes on."""
        while (event := self._events.get()) is not None:
            self._tell(event)
            self._told += 1

    def _tell(self, event: Event) -> None:
        """Log what has numbers."""
        match event:
            case Started():
                self._start(event)
            case Windowed() | Evaluated():
                self._run.log(known(event.metrics | {"reliability/log_points_dropped": self._dropped}))
            case Shown():
                self._run.log({"progress/samples": event.samples, "eval/examples": table(event.rows)})
            case Saved():
                self._run.log({"progress/samples": event.samples, "reliability/checkpoint_bytes": event.bytes})
                if self._watch.artifacts:
                    self._refer(event.path, event.samples)
            case Noticed():
                self._run.summary[f"notice/{event.code}"] = event.message
                if event.code in ALERTS:
                    self._alert(event.code, event.message)
            case Ended():
                if event.reason in ("guard", "failed"):
                    self._alert(event.reason, event.message)
                self._run.summary.update({"end/reason": event.reason, "end/message": event.message, **known(event.metrics)})
            case _:
                pass

    def close(self) -> None:
        """Hand over what waits, and finish. A server that is gone costs about FINISH_S; its points stay on disk."""
        told = -1
        if self._writer.is_alive():
            self._events.put(None)
        while self._writer.is_alive() and self._told > told:  # it goes on, and so it is waited for
            told = self._told
            self._writer.join(FINISH_S if self._told else SLOW_START_S)
        if self._writer.is_alive():
            print(f"W&B took no more: {self._events.qsize()} events are in events.jsonl alone")
        if self._run is None:
            return
        last = threading.Thread(target=self._finish, name="wandb finish", daemon=True)
        last.start()
        last.join(FINISH_S + 1)
        if last.is_alive():  # finish_timeout does not hold where the service dies at a bad moment: about one time in twelve
            print(f"W&B does not answer: {self._sync()}")
            end_service()
            last.join(FINISH_S)

    def _finish(self) -> None:
        import wandb

        try:
            self._run.finish()
        except (wandb.errors.Error, TimeoutError, ConnectionError) as e:
            print(f"W&B did not take everything ({' '.join(str(e).split())}): {self._sync()}")

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
            self._run.alert(title=code, text=text)

    def _sync(self) -> str:
        return f"send it later with `wandb sync --include-online {self._folder / 'wandb'}/*run-*`"

    def _start(self, event: Started) -> None:
        import wandb

        begin = time.monotonic()
        id_file = self._folder / "wandb_id"
        run_id = id_file.read_text() if id_file.exists() else secrets.token_hex(4)
        id_file.write_text(run_id)
        problem = unreachable(START_S / 2) if self._watch.wandb == "online" else ""
        left = START_S - (time.monotonic() - begin)
        settings = wandb.Settings(
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
            console="off",
            silent=True,
            init_timeout=left,
            finish_timeout=FINISH_S,
        )
        options: dict[str, Any] = {
            "project": self._watch.project,
            "id": run_id,
            "name": self._folder.name,
            "job_type": os.environ.get("WANDB_JOB_TYPE", "train"),
            "dir": str(self._folder),
            "config": {"run": event.config, "plan": event.plan.to_json(), "commit": commit(Path.cwd())},
            "resume": "allow" if self._watch.wandb == "online" else None,
            "settings": settings,
        }
        if not problem:
            try:
                self._run = wandb.init(mode=self._watch.wandb, **options)  # type: ignore[arg-type]
            except (wandb.errors.CommError, wandb.errors.UsageError) as e:
                problem = " ".join(str(e).split())
                wandb.teardown()  # the service of the failed start still holds the run's id
        if problem:
            print(f"W&B is out of reach ({problem}): logging offline; {self._sync()}")
            self._run = wandb.init(mode="offline", **(options | {"resume": None}))
        self._run.summary["batch/noise_scale_estimator"] = event.estimator
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric="progress/samples")


def known(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that have a value; null has no place on a curve."""
    return {name: value for name, value in metrics.items() if value is not None}


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
        return f"WANDB_BASE_URL {base!r} is no http address"
    body = b'{"query": "query Viewer { viewer { id } }"}'
    request = urllib.request.Request(f"{base}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310  http, as checked
    try:
        with urllib.request.urlopen(request, timeout=limit_s):  # noqa: S310
            return ""
    except urllib.error.HTTPError as e:
        return f"HTTP {e.code}" if e.code >= 500 or e.code == 429 else ""
    except OSError as e:
        return str(e)
