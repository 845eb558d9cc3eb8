"""The meters as a callback of Hugging Face's Trainer."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.stats.events import Metrics
from harness.stats.own import OwnMeters


class TrainerMeters(TrainerCallback):  # type: ignore[misc]
    """Give it to `Trainer(callbacks=[...])`; `log` gets the metrics each time the Trainer logs, such as `wandb.log`."""

    def __init__(self, log: Callable[[Metrics], Any], reference: int | None = None) -> None:
        self.log, self.reference = log, reference
        self.meters: OwnMeters | None = None
        self._step = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure what was logged of the training."""
        if not logs or "loss" not in logs:
            return
        if self.meters is None:
            self.meters = OwnMeters(args.train_batch_size * args.gradient_accumulation_steps * args.world_size, self.reference)
        steps, self._step = state.global_step - self._step, state.global_step
        self.log(self.meters.step(logs["loss"], logs.get("grad_norm"), steps))
