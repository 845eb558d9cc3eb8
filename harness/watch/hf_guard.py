"""The guard in Hugging Face's Trainer: a step whose gradient is not finite moves nothing, as far as Trainer lets a callback."""

from typing import TYPE_CHECKING, Any, final

import torch

from harness.config.errors import UserError
from harness.supervision.output_redirect import say
from harness.watch.hf_callback import TrainerCallback, check_installed

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


@final
class TrainerGuard(TrainerCallback):  # type: ignore[misc]
    """`Trainer(..., callbacks=[TrainerGuard()])`: steps that are not finite are left out, up to `budget` of them; then it stops.

    On DDP every rank sees the same gradients, so all leave out the same steps. What a callback cannot do: keep Trainer from
    counting such a step in its schedule, or see the gradients under FSDP and DeepSpeed, which are refused. It looks at the norm
    once a step, which synchronises with the GPU. Raises UserError under FSDP or DeepSpeed, or if transformers is not installed.
    """

    def __init__(self, budget: int = 10) -> None:
        check_installed("TrainerGuard")
        self._budget = budget
        self.skipped: list[int] = []
        """The steps that were left out, the first step being 1."""

    def on_train_begin(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, **_: Any) -> None:
        """Raises UserError under FSDP or DeepSpeed, where the gradients are not seen."""
        if args.fsdp or args.deepspeed is not None:
            at = "cannot see the gradients of FSDP and DeepSpeed, which Trainer keeps"
            raise UserError("TrainerGuard", at, "leave it out, or train the model by the recipe causal_lm")

    def on_pre_optimizer_step(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", /, *, model: Any, **_: Any
    ) -> "TrainerControl":
        """Drop the gradients of a step that is not finite: an optimizer leaves weights without a gradient alone."""
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        if not grads or bool(torch.isfinite(torch.nn.utils.get_total_norm(grads))):
            return control
        for parameter in model.parameters():
            parameter.grad = None
        self.skipped.append(state.global_step + 1)
        if state.is_world_process_zero:
            say(f"warn   step {state.global_step + 1}: the gradient is not finite, and the step was left out on all ranks")
        if len(self.skipped) > self._budget:
            if state.is_world_process_zero:
                say(f"error: {len(self.skipped)} steps were not finite, more than {self._budget}: training stops; lower the rate")
            control.should_training_stop = True
        return control
