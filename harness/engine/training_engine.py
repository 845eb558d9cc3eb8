"""One optimizer step on any backend: the rates, the passes, the end of the step, and what is measured of it.

What backends do differently is in three strategies: Passes (how a pass runs, and how the ranks' gradients are reduced), StepOwner
(who moves the weights) and State (where weights and optimizer state lie).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice
from harness.data.feed import Micro
from harness.data.sample_order import derive
from harness.data.seeding import PASS, seed_all, seed_host
from harness.distributed.process_group import out_of_memory, peers
from harness.engine.buffers import Buffers, Kept
from harness.engine.evaluation_weights import averaged, evaluated
from harness.engine.interface import Engine, Limit, StepTooLargeError, unmeasured
from harness.engine.model_setup import label_numbers
from harness.engine.moment_noise import coupled_decay, first_moments
from harness.engine.param_names import whole_shape
from harness.engine.passes import Passes, Sums
from harness.engine.state import State
from harness.engine.step_owner import StepOwner
from harness.engine.update_norms import UpdateNorms
from harness.plan.plan import Plan
from harness.supervision.heartbeat import Heartbeat
from harness.telemetry.measurements import Reading


@final
class TrainingEngine(Engine):
    """One process's part of every step."""

    def __init__(self, passes: Passes, owner: StepOwner, state: State) -> None:
        process, setup = passes.process, passes.setup
        self.plan, self.process, self.setup = passes.plan, process, setup
        self.device, self.dtype, self.rank, self.processes = process.device, process.dtype, process.rank, process.ranks
        self.passes, self.owner, self.state = passes, owner, state
        self.optimizer, self.average, self.meters = setup.optimizer, setup.average, setup.meters
        self.estimator, self.base = passes.estimator, setup.frozen.digests
        self.heartbeat = Heartbeat()
        self.node = unmeasured
        self.notes = []
        self._pass_seed = derive(process.config.run.seed, PASS)
        self._seed_pass = seed_all if process.device.type == "cuda" else seed_host
        self._torn: Kept | None = None  # the buffers from before a step that has failed
        self._entered = False  # whether the model is in a mode that this engine has put it in

    @property
    @override
    def model(self) -> nn.Module:
        return self.setup.model

    @override
    def parameters(self, *, trained: bool = False) -> int:
        return sum(prod(whole_shape(p)) for p in (self.setup.trained.parameters if trained else self.model.parameters()))

    @override
    def adopt(self, plan: Plan) -> None:
        self.plan = plan
        self.passes.adopt(plan)
        self.owner.adopt(plan)

    @override
    def step(self, micros: Sequence[Micro], lr: float, stop: bool, *, close: bool = False, limit: Limit | None = None) -> None:
        self.heartbeat.tick()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.owner.moving, kept = False, Kept()
        try:
            kept += self.passes.kept(self._buffers)
            local, real, padding = self._run(micros, float(stop) / len(micros))
            self._end(local, real, kept, limit, close=close)
            self.meters.computed += real + padding
            self.meters.step_done(local)
        except Exception as e:
            if not out_of_memory(e):
                self._torn = kept
                raise
            self._forget(kept)
            if self.owner.moving:
                raise
            raise StepTooLargeError(str(e)) from e

    @override
    def regroup(self, plan: Plan) -> None:
        if self._torn is not None:
            if self.owner.moving:
                raise RuntimeError("weights may have moved in the step in which the rank was lost")
            self._forget(self._torn)
            self._torn = None
        process = self.process
        process.rank, process.ranks = self.rank, self.processes = peers()
        self.state.copies = self.processes
        self.meters.regroup(self.rank, self.processes)
        self.passes.regroup()
        self.adopt(plan)

    def _run(self, micros: Sequence[Micro], stop: float) -> tuple[Sums, int, int]:
        """All passes of a step: (this rank's sums, its samples, the samples of its padding passes)."""
        last, real, padding = micros[-1], 0, 0
        local: Sums | None = None
        for micro in micros:
            chunk = micro.chunk
            if not self._entered or self.model.training == chunk.padding:
                self._entered = True
                self.model.train(not chunk.padding)  # a padding pass leaves BatchNorm's running statistics alone
            self._seed_pass(derive(self._pass_seed, chunk.start))
            sums = self.passes.run(micro, stop, micro is last)
            if local is None:
                self.passes.first_done(sums)
                local = sums
            else:
                local = (local[0] + sums[0], local[1] + sums[1], local[2] + sums[2])
            real, padding = real + chunk.count * (not chunk.padding), padding + chunk.count * chunk.padding
        assert local is not None  # noqa: S101  a step has at least one pass
        return local, real, padding

    def _end(self, local: Sums, real: int, kept: Kept, limit: Limit | None, *, close: bool) -> None:
        """Move the weights and write the step's row; nothing is read back. `kept` holds the buffers from before the step."""
        meters, views = self.meters, self.state.views() if close else []
        updates = UpdateNorms(views) if views else None
        row = self.owner.finish(local, limit, close=close)
        meters.rows.add(row)
        _, count, _, norm, _, bad, _ = row
        meters.syncs += self._buffers.settle(kept, bad)
        if self.average is not None and self.plan.ema is not None:
            self.average.take(self.plan.ema, bad == 0)
        small, self.passes.small = self.passes.small, None
        if small is not None and real == self.plan.share:
            meters.add_noise(small, count, norm, bad)
        if updates is not None:
            moments, decay = self._moments()
            if self.setup.histograms is not None:
                self.setup.histograms.count("weights", [view.held for view in views])
            meters.add_norms(self._labels, updates.norms(moments), len(moments), self.owner.grad_norms, decay)

    def _forget(self, kept: Kept) -> None:
        """After a step that did not fit in memory: drop all gradients, and restore the buffers from `kept`."""
        self.passes.forget()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        self._buffers.put_back(kept)

    @cached_property
    def _buffers(self) -> Buffers:
        """The model's buffers, which a step that is not finite must not move either."""
        return Buffers(self.model, self.device)

    @cached_property
    def _labels(self) -> Tensor:
        """Which of the meters' labels each trained parameter belongs to."""
        return label_numbers(self.process, self.setup, self.state.held())

    def _moments(self) -> tuple[list[Tensor], Tensor | None]:
        """This rank's part of the first moments, if the noise scale is estimated from them, with the coupled weight decay."""
        if self.estimator != "moments":
            return [], None
        moments = list(first_moments(self.optimizer, self.state.moved(), self.state.local))
        return [m.value for m in moments], coupled_decay(moments)

    @override
    def begin(self) -> None:
        self.meters.begin()

    @override
    def lr_scales(self) -> list[float]:
        return [float(group.get("lr_scale", 1.0)) for group in self.optimizer.param_groups]

    @override
    def read(self, data_wait_s: float = 0.0, troubles: int = 0, *, save_due: bool = False, save_failed: bool = False) -> Reading:
        self.passes.check_trained()
        if self.setup.unused.looking:
            self._check_first_window()
        histograms, copies = self.setup.histograms, self.state.copies
        found = None if histograms is None else histograms.take(copies, self.processes)
        reading = self.meters.read(data_wait_s, troubles, copies, (float(save_due), float(save_failed)), self.node())
        return reading if found is None else replace(reading, histograms=found)

    @override
    def stop_asked(self) -> bool:
        return self.meters.stop_asked()

    def _check_first_window(self) -> None:
        """Whether buffers, gradients and the optimizer are as the first steps should leave them. All ranks call it."""
        self._buffers.check()
        own, unused = self.setup.own, self.setup.unused
        self.notes += [("unused", text) for text in unused.notes(self.setup.trained)]
        self.notes += [("optimizer", text) for text in own.first_step()]
        own.check(self.plan.backend)

    @override
    def sync_buffers(self) -> None:
        self.notes += [("buffers", text) for text in self._buffers.sync()] if self.processes > 1 else []
        self.setup.own.check(self.plan.backend)
        if self.average is not None and self.processes > 1:
            self.average.sync(self.device)

    @override
    def evaluated(self) -> AbstractContextManager[None]:
        return evaluated(self.setup, self.state)

    @override
    def averaged(self) -> AbstractContextManager[None]:
        return averaged(self.setup, self.state)

    @override
    def reduce(self, sums: Tensor) -> Tensor:
        return self.process.reduce(sums)

    @override
    def any_rank(self, flag: bool) -> bool:
        return bool(self.reduce(torch.tensor(float(flag), device=self.device)) > 0)

    @override
    def not_finite(self) -> str:
        return next((name for name, _, held in self.state.held() if not torch.isfinite(held).all()), "")

    @override
    def pieces(self) -> list[TensorSlice]:
        return self.state.pieces()

    @override
    def load(self, source: SliceReader) -> None:
        missing = self.state.load(source)
        again = "it starts fresh"
        self.notes += [("resumed", f"the checkpoint has no extra state of {name}: {again}") for name in missing]
        self.owner.loaded()
