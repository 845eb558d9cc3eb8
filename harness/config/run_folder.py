"""The folder of a run: what lies where in it, and where the run's checkpoints are. No other module spells these names."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from harness.config.schema import Config

RUN_FILE, PLAN, JOURNAL = "run.yaml", "plan.json", "events.jsonl"
ACCELERATE, DEEPSPEED, EVIDENCE = "accelerate.yaml", "deepspeed.json", "evidence.json"
LOGS = "logs"
LOCK = "lock"
"""The lock file in a run folder, and in a checkpoint.dir that is a folder."""


@final
@dataclass(frozen=True)
class RunFolder:
    """The paths in a run folder, whether or not anything is there yet."""

    path: Path

    @property
    def run_file(self) -> Path:
        """The run file, resolved: every setting with its value."""
        return self.path / RUN_FILE

    @property
    def plan(self) -> Path:
        """The plan of the last start, as JSON."""
        return self.path / PLAN

    @property
    def journal(self) -> Path:
        """The journal: a line of JSON for each step, window, evaluation and notice."""
        return self.path / JOURNAL

    @property
    def evidence(self) -> Path:
        """The measurements of a search: the largest stable learning rate, the noise scale."""
        return self.path / EVIDENCE

    @property
    def accelerate(self) -> Path:
        """The configuration for `accelerate launch`."""
        return self.path / ACCELERATE

    @property
    def logs(self) -> Path:
        """The folder of the ranks' output. On several hosts each has a folder of its own in it."""
        return self.path / LOGS

    @property
    def torchrun_logs(self) -> Path:
        """The folder of torchrun's own logs."""
        return self.logs / "torchrun"

    @property
    def trial_log(self) -> Path:
        """The output of the process of a lab tool's trial."""
        return self.logs / "trial.log"

    @property
    def ranks(self) -> Path:
        """The folder in which the ranks say where they stand, a file for each node (rank_status.py)."""
        return self.path / "ranks"

    @property
    def seal(self) -> Path:
        """The seal that shows that this user made the folder (folder_seal.py)."""
        return self.path / "origin"

    @property
    def owner(self) -> Path:
        """A random id of this folder, for the lease of an object store and the mark of `checkpoint.dir`."""
        return self.path / "owner"

    @property
    def wandb(self) -> Path:
        """The folder of W&B's files."""
        return self.path / "wandb"

    def tracker(self, name: str) -> Path:
        """The folder of a tracker's files, by Accelerate's name of the tracker."""
        return self.path / name

    @property
    def wandb_id(self) -> Path:
        """The id of the run in W&B."""
        return self.path / "wandb_id"

    @property
    def own_checkpoints(self) -> Path:
        """Where the checkpoints are unless `checkpoint.dir` says otherwise."""
        return self.path / "checkpoints"

    def checkpoints(self, config: Config) -> str:
        """Where the checkpoints of the run are: a path, or the URL of a store."""
        return config.checkpoint.dir or str(self.own_checkpoints)

    def place_setting(self, config: Config) -> str:
        """The setting that says where the checkpoints of the run are."""
        return "checkpoint.dir" if config.checkpoint.dir else "run.dir"
