"""Telemetry for Hugging Face's Trainer: a callback that tells widebatch's metrics, by their names, to a function of yours."""

import math
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any, final

from harness.config.errors import UserError
from harness.modeling.noise_meter import PassNoise
from harness.telemetry.clock import Clock
from harness.telemetry.events import Metrics
from harness.telemetry.spikes import LEAST_LOG, Spikes
from harness.watch.hf_callback import TrainerCallback, check_installed
from harness.watch.isolation import Isolation

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


@final
class Telemetry(TrainerCallback):  # type: ignore[misc]
    """`Trainer(..., callbacks=[Telemetry(tell)])`: `tell(metrics)` is called on rank 0 each time Trainer logs a training loss.

    The noise scale needs 3 or more passes a step (gradient_accumulation_steps), since Trainer has clipped the last one's gradient
    before a callback sees it; with fewer, and on backends that hold gradients in shards, it is null. What `tell` raises costs
    that call, a line on standard error and a count, and never training. Metrics have the names and units of a journal
    (`throughput/samples_per_s`). Raises UserError if transformers is not installed, or Trainer would hide a NaN.
    """

    def __init__(self, tell: Callable[[Metrics], None]) -> None:
        check_installed("Telemetry")
        self._tell = tell
        self._isolation, self._logs = Isolation("Telemetry"), 0
        self._losses, self._norms = Spikes(), Spikes()
        self._clock = Clock()
        self._noise: PassNoise | None = None
        self._batch = self._per_epoch = self._told = 0
        self._trained, self._told_s, self._warm = 0.0, 0.0, False

    def on_train_begin(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        /,
        *,
        model: Any,
        train_dataloader: Any,
        **_: Any,
    ) -> None:
        """Read the batch and passes of a step. Raises UserError if Trainer would hide a NaN."""
        if args.logging_nan_inf_filter:
            raise UserError("logging_nan_inf_filter", "is true: Trainer writes a mean where a loss was NaN", "set it to false")
        micro, passes = args.per_device_train_batch_size * max(args.n_gpu, 1), args.gradient_accumulation_steps
        self._batch = micro * passes * args.world_size
        computed = len(train_dataloader) * micro * args.world_size
        data = train_dataloader.dataset
        self._per_epoch = min(len(data), computed) if isinstance(data, Sized) else computed
        whole = not args.fsdp and args.deepspeed is None
        self._noise = PassNoise(model.parameters(), micro=micro, passes=passes - 1) if passes > 2 and whole else None
        self._clock.discard("start")

    def on_substep_end(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, **_: Any) -> None:
        """A pass of an accumulated step is done."""
        if self._noise:
            with self._isolation.around("noise scale"):
                self._noise.passed()

    def on_step_end(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, **_: Any) -> None:
        """The optimizer has stepped. The first step warms up: its time and samples are in no rate."""
        if self._noise:
            with self._isolation.around("noise scale"):
                self._noise.stepped()
        if self._warm:
            self._trained += self._clock.lap()
        else:
            self._clock.discard("first_step")
            self._warm, self._told = True, self._samples(state)

    def on_log(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, *, logs: dict[str, float], **_: Any
    ) -> None:
        """Report a window. Logs of evaluations and of the end are no windows."""
        if "loss" not in logs:
            return
        self._logs += 1
        with self._isolation.around("log"):
            metrics = self._window(state, logs)
            if state.is_world_process_zero:
                self._tell(metrics)

    def on_evaluate(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, **_: Any) -> None:
        """The time since the last step does not count as training."""
        self._clock.discard("eval")

    def on_save(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, **_: Any) -> None:
        """The time since the last step does not count as training."""
        self._clock.discard("checkpoint")

    def on_train_end(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, **_: Any) -> None:
        """Say how many logs `tell` could not take."""
        self._isolation.summarize(self._logs)

    def _window(self, state: "TrainerState", logs: dict[str, float]) -> Metrics:
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", math.nan))
        (loss_z,), self._losses = self._losses.judged([loss])
        (norm_z,), self._norms = self._norms.judged([math.log(norm) if norm > 0 else math.nan], LEAST_LOG)
        samples = self._samples(state)
        fresh, seconds = samples - self._told, self._trained - self._told_s
        self._told, self._told_s = samples, self._trained
        noise = self._noise.read().samples if self._noise else None
        return {
            "progress/step": float(state.global_step),
            "progress/samples": float(samples),
            "progress/train_s": self._trained,
            "progress/wall_s": self._clock.wall_s,
            **{f"pause/{name}_s": spent for name, spent in self._clock.pauses.items()},
            "train/loss": loss,
            "train/grad_norm": norm if "grad_norm" in logs else None,
            "train/lr": logs.get("learning_rate"),
            "batch/global_samples": float(self._batch),
            "batch/noise_scale_samples": noise,
            "batch/critical_ratio": self._batch / noise if noise else None,
            "throughput/samples_per_s": fresh / seconds if fresh and seconds > 0 else None,
            "stability/spikes": float(self._losses.count),
            "stability/loss_z": loss_z,
            "stability/grad_norm_z": norm_z,
        }

    def _samples(self, state: "TrainerState") -> int:
        """Samples seen: an epoch's last, short step counts for what it held, not for a whole batch."""
        steps_an_epoch = max(math.ceil(self._per_epoch / self._batch), 1)
        epochs, steps = divmod(int(state.global_step), steps_an_epoch)
        return epochs * self._per_epoch + min(steps * self._batch, self._per_epoch)
