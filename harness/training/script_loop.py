"""The loop of a script that owns its passes: the same steps, guard and checkpoints, with each step's passes handed over."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import final

from harness.checkpoint.train_state import State
from harness.distributed.process_group import agree
from harness.plan.step_triggers import Due
from harness.telemetry.events import Event
from harness.telemetry.measurements import Reading
from harness.training.loop import Loop
from harness.training.open_window import Passes, Window


@final
class ScriptLoop(Loop):
    """A run whose passes and evaluations are a script's."""

    def _due(self, window: Window, after: int, advance: float) -> Due:
        """See Loop._due. An epoch's end closes the window too: the script may evaluate there, and reports at the state it sees."""
        up = super()._due(window, after, advance)
        ends = after % len(self.feed.data) < self.reporter.plan.global_batch
        return replace(up, window=True) if ends else up

    def _hand_over(self, passes: Passes) -> Iterator[Passes]:
        """See Loop._hand_over."""
        yield passes

    def _evaluate(self) -> Iterator[Event]:
        """See Loop._evaluate. The script measures when it likes, and says so by `evaluated`."""
        return iter(())

    def _culprits(self, before: State, reading: Reading) -> Iterator[Event]:
        """See Loop._culprits. To try samples one by one takes the loss, which the script has."""
        return iter(())

    def _add_evaluation(self) -> Iterator[Event]:
        """See Loop._add_evaluation. The script has yet to measure."""
        return iter(())

    def evaluated(self, metrics: Mapping[str, float]) -> Iterator[Event]:
        """The script has measured `metrics` at the current state: `loss` and more. Rank 0's numbers count. Raises ValueError."""
        if "loss" not in metrics:
            raise ValueError(f"evaluated() got {', '.join(metrics) or 'nothing'}, and no 'loss': give the mean validation loss")
        plain = {f"eval/{name}": float(value) for name, value in metrics.items()}
        found: dict[str, float] = json.loads(agree(json.dumps(plain)))
        yield from self._take_evaluation(found, [])
        if self.ended is not None:
            yield from super()._add_evaluation()
