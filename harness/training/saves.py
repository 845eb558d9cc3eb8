"""The interface of a run's checkpoints for the loop, and its implementation for a run without any."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from typing_extensions import override

from harness.checkpoint.train_state import State
from harness.telemetry.events import Event


@dataclass(frozen=True)
class Places:
    """The run folder, and the folder or URL of its checkpoints."""

    folder: Path
    checkpoints: str


class Saves(ABC):
    """The checkpoints of a run. All ranks call the methods at the same step."""

    @property
    @abstractmethod
    def saved(self) -> bool:
        """Whether there is, or will be, a checkpoint of this run."""

    @property
    @abstractmethod
    def due(self) -> bool:
        """Whether it is time to save, by rank 0's clock: False on all others."""

    @property
    @abstractmethod
    def lost(self) -> bool:
        """Whether the place of checkpoints was removed, as this rank sees it: none can be written any more."""

    @property
    @abstractmethod
    def places(self) -> "Places | None":
        """The run's folders, also after a renaming, as this rank finds them; None for a run without any."""

    @abstractmethod
    def moved(self, state: State) -> list[Event]:
        """A notice that a folder of the run was renamed or removed; called at the end of a window. Once, on rank 0."""

    @property
    @abstractmethod
    def failed(self) -> bool:
        """Whether this rank could not write, which the others do not know yet."""

    @abstractmethod
    def hear(self, failures: float, *, first: bool) -> list[Event]:
        """The events at the end of a window. `failures`: how many ranks reported `failed` in its reading.

        After the `first` step all state exists: memory for its copy is allocated while training continues.
        """

    @abstractmethod
    def save(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        """Report how the last checkpoint ended, then begin one of `state`. `judged`: its score, and whether the run is well."""

    @abstractmethod
    def add_evaluation(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        """Add to the checkpoint that was just saved what an evaluation of the same weights has changed."""

    @abstractmethod
    def missing(self, state: State) -> str:
        """Why there is no checkpoint of `state`, which was to be saved; nothing where there is one. To ask after `settle`."""

    @abstractmethod
    def settle(self) -> list[Event]:
        """Wait until all ranks are through with the checkpoint in progress; what became of it."""

    @abstractmethod
    def regroup(self, state: State) -> tuple[bool, list[Event]]:
        """The ranks are others: (whether a checkpoint in progress is given up, the events). `state` is the current one."""

    @abstractmethod
    def close(self) -> None:
        """End the writer, when the run is over or has failed."""


@final
class Unsaved(Saves):
    """Checkpoints of a run without a folder: none."""

    saved = due = failed = lost = False
    places = None

    @override
    def moved(self, state: State) -> list[Event]:
        return []

    @override
    def hear(self, failures: float, *, first: bool) -> list[Event]:
        return []

    @override
    def save(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        return iter(())

    @override
    def add_evaluation(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        return iter(())

    @override
    def missing(self, state: State) -> str:
        return ""

    @override
    def settle(self) -> list[Event]:
        return []

    @override
    def regroup(self, state: State) -> tuple[bool, list[Event]]:
        return False, []

    @override
    def close(self) -> None:
        """Nothing to do."""
