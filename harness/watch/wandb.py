"""Weights & Biases, on rank 0: windows and evaluations over samples, the run file and the plan as config, nothing else.

`step=` is never passed: W&B drops points that come with a lower one, as after a resume. The x-axis is progress/samples.
"""

import secrets
from pathlib import Path
from typing import Any, final

import wandb

from harness.plan.config import WatchConfig
from harness.stats.events import Ended, Evaluated, Event, Noticed, Saved, Started, Windowed

INIT_TIMEOUT_S = 10
FINISH_TIMEOUT_S = 10
GROUPS = ("train", "eval", "batch", "throughput", "memory", "stability", "reliability")


@final
class WandbWatcher:
    """Logs to one W&B run per run folder: its id is kept there, so that a resumed run goes on in the same place."""

    def __init__(self, watch: WatchConfig, folder: Path) -> None:
        self._watch, self._folder = watch, folder
        self._run: Any = None

    def __call__(self, event: Event) -> None:
        """Log what has numbers."""
        match event:
            case Started():
                self._start(event)
            case Windowed() | Evaluated():
                self._run.log(event.metrics)
            case Noticed():
                self._run.summary[f"notice/{event.code}"] = event.message
            case Saved():
                self._run.log({"progress/samples": event.samples, "reliability/checkpoint_bytes": event.bytes})
            case Ended():
                self._run.summary.update({"end/reason": event.reason, "end/message": event.message, **event.metrics})
            case _:
                pass

    def close(self) -> None:
        """Finish the run; a server that is gone is waited for at most FINISH_TIMEOUT_S."""
        if self._run is not None:
            self._run.finish()

    def _start(self, event: Started) -> None:
        id_file = self._folder / "wandb_id"
        run_id = id_file.read_text() if id_file.exists() else secrets.token_hex(4)
        id_file.write_text(run_id)
        settings = wandb.Settings(
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
            console="off",
            silent=True,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        )
        options: dict[str, Any] = {
            "project": self._watch.project,
            "id": run_id,
            "name": self._folder.name,
            "dir": str(self._folder),
            "config": {"run": event.config, "plan": event.plan.to_json()},
            "resume": "allow" if self._watch.wandb == "online" else None,
            "settings": settings,
        }
        try:
            self._run = wandb.init(mode=self._watch.wandb, **options)  # type: ignore[arg-type]
        except (wandb.errors.CommError, wandb.errors.UsageError) as e:
            print(f"W&B is out of reach ({' '.join(str(e).split())}): logging offline; send it later with `wandb sync`")
            wandb.teardown()  # the service of the failed start still holds the run's id
            self._run = wandb.init(mode="offline", **(options | {"resume": None}))
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric="progress/samples")
