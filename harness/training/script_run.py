"""Run: what a training loop written for Accelerate adopts, to be planned, guarded, watched, saved and resumed as any other run."""

import atexit
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from torch.utils.data import DataLoader

from harness.config.allowed_names import new_folder
from harness.config.errors import UserError
from harness.data.feed import Feed, Micro
from harness.data.sampler_order import SamplerOrder
from harness.distributed.process_group import agree, let_gloo_finish, on_rank_0
from harness.engine.data_agreement import check_data, check_size
from harness.engine.script import backend_of, open_script, precision_of, torch_optimizer
from harness.plan.plan import Plan, plan
from harness.plan.plan_warnings import SHOWN
from harness.plan.world import Device, World, place
from harness.recipes.base import SCRIPT
from harness.recipes.script import Script, TokenScript
from harness.supervision.rank_status import clear, rank_status
from harness.supervision.run_lock import FolderLock
from harness.supervision.safe_files import check_folders
from harness.supervision.stop_signals import StopFlag
from harness.telemetry.events import Ended, Event, Noticed
from harness.training.ending import ended
from harness.training.open_window import Passes
from harness.training.run_files import write_run_files
from harness.training.script_loop import ScriptLoop
from harness.training.script_settings import ScriptLoader, Settings, script_config
from harness.training.window_report import WindowReporter
from harness.watch.isolation import Isolated
from harness.watch.watchers import check_watchers, make_own, open_watchers


@final
class Run:
    """A run whose loop is a script's own:

        model, optimizer = accelerator.prepare(model, optimizer)
        run = Run("run.yaml", accelerator, model, optimizer, loader)
        for epoch in run.epochs():
            for batch in run.batches():
                with accelerator.accumulate(model):
                    run.backward(loss(model, batch))
                    run.step()

    `settings`: a run file or its sections as a dict. `optim` may be left out: the script's optimizer says how it was tuned at
    batch.reference, and gets the plan's numbers in place of these. `loader`: the training DataLoader, as it was before
    `prepare`; its data, collate_fn, workers and order are used (shuffled as accelerate's seedable sampler does, with run.seed).
    Its batch_size is batch.micro where none is given. `item`: what the loss counts, "sample" or "token".

    One process, DDP or FSDP2 in fp32 or bf16, DeepSpeed's ZeRO-1 to 3 in fp32. Raises UserError where the settings contradict the
    script, or for a loader, optimizer or backend that it cannot drive.
    """

    def __init__(
        self,
        settings: Settings,
        accelerator: Any,
        model: nn.Module,
        optimizer: Any,
        loader: "DataLoader[Any]",
        *,
        item: str = "sample",
    ) -> None:
        given, bare = ScriptLoader.of(loader), torch_optimizer(optimizer)
        config = script_config(settings, given, bare, precision_of(accelerator), backend_of(accelerator))
        recipe = (TokenScript if item == "token" else Script)(given.data, given.collate, given.workers)
        device: Device = "cpu" if accelerator.device.type == "cpu" else "gpu"
        self.plan: Plan = plan(config, World(accelerator.num_processes, place(os.environ).nodes, device))
        check_size(self.plan, len(given.data))
        self._config, self._stack, self._stop = config, ExitStack(), StopFlag()
        self._engine, self._script = open_script(config, self.plan, recipe, accelerator, model, bare)
        folder = Path(agree(config.run.dir or new_folder(Path(sys.argv[0]).stem or SCRIPT, datetime.now())))
        self._loop = ScriptLoop(config, self.plan, recipe, self._engine, folder, self._stop)
        self._loop.feed = Feed(
            given.data,
            order=SamplerOrder(len(given.data), config.run.seed, shuffle=given.shuffle),
            device=self._engine.device,
            dtype=None,
            seed=config.run.seed,
            collate=given.collate,
            workers=given.workers,
            faults=config.data,
        )
        self._loop.valid = None
        self._watchers: list[Isolated] = []
        self._passes: Passes | None = None
        self._micro: Micro | None = None
        self._left = 0
        self._late: list[Event] = []
        self._closed = False
        if device == "cpu" and self.plan.processes > 1:
            atexit.register(let_gloo_finish)
        try:
            self._steps = self._start(recipe, folder)
        except BaseException:
            self._loop.close()
            self._stack.close()
            raise

    def epochs(self) -> Iterator[int]:
        """The numbers of the epochs that are left, the current one first; at the end the run is closed."""
        try:
            while self._passes is not None:
                yield self._epoch
        finally:
            self.close()

    def batches(self) -> Iterator[Any]:
        """This process's batches, on its device, pass by pass, of the steps that begin in this epoch."""
        epoch = self._epoch
        while self._passes is not None and self._epoch == epoch:
            passes = self._passes
            self._left = len(passes.micros)
            self._script.begin_step(self._left)
            for micro in passes.micros:
                self._micro = micro
                self._script.begin_pass(micro)
                yield micro.batch
                if self._micro is not None:
                    raise UserError("run.backward", "was not called in a pass", "call run.backward(loss) once for each batch")
            if self._passes is passes:
                raise UserError("run.step", "was not called in a step's last pass", "call run.step() after each run.backward(loss)")

    def backward(self, loss: Tensor, count: Tensor | float | None = None) -> None:
        """In place of `accelerator.backward`: `loss` is the mean over the pass's samples or, with `count`, over so many items."""
        if self._micro is None:
            raise UserError("run.backward", "is called twice in a pass, or outside", "call it once for each batch of run.batches()")
        self._left -= 1
        self._script.add(self._micro, loss, count, last=self._left == 0)
        self._micro = None

    def step(self) -> None:
        """In place of the optimizer's and the scheduler's `step` and of `zero_grad`: ends the step, in its last pass."""
        if self._micro is None and self._left == 0 and self._passes is not None:
            self._advance()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Report an evaluation: `loss` and other means over the whole validation data, the same on every rank."""
        for event in self._loop.evaluated(metrics):
            self._tell(event)

    def close(self) -> None:
        """End the run: late events are reported, watchers and checkpoints closed. All ranks call it; `epochs` does at its end."""
        if self._closed:
            return
        self._closed = True
        if self._loop.ended is None:
            state = self._loop.state
            self._late = [Ended(state.step, state.samples, "failed", "the script left its loop before the end of the run")]
        else:
            self._late += [event for event in self._steps if not isinstance(event, Passes)]
        for event in self._late:
            at = replace(event, metrics=ended(self._loop.state, "").metrics) if isinstance(event, Ended) else event
            self._tell(at)
        self._loop.close()
        self._stack.close()

    @property
    def _epoch(self) -> int:
        """The epoch in which the next step begins."""
        assert self._passes is not None  # noqa: S101  who asks has looked
        return self._passes.shards.start // len(self._loop.feed.data)

    def _start(self, recipe: Script, folder: Path) -> Iterator[Event | Passes]:
        """Take the folder, open the watchers, take over what a checkpoint has, and fetch the first step's batches."""
        loop, engine, config = self._loop, self._engine, self._config
        watching = check_watchers(config.watch)
        seen = check_data(recipe, loop.feed.data, None, config.run.seed)
        loop.reporter = WindowReporter(config, self.plan, recipe, engine, loop.feed, 0, counts_flops=False)
        lock = FolderLock(folder)
        self._stack.callback(lock.close)
        on_rank_0(lambda: _sit(lock, folder, own_checkpoints=config.checkpoint.dir is None))
        self._stack.enter_context(rank_status(folder, place(os.environ), engine.heartbeat))
        notices = list(loop.resume())
        state = loop.state
        if engine.rank == 0:
            own = make_own(watching)
            for watcher in own:
                self._stack.callback(watcher.close)
            write_run_files(config, self.plan, folder)
            self._watchers = open_watchers(watching, folder, self._stack, show_plan=True, alone=True) + own
        self._tell(loop.started())
        notices += [Noticed(state.step, state.samples, "data", text) for text in seen]
        if not loop.resumed:
            notices += [Noticed(state.step, state.samples, w.code, w.message) for w in self.plan.warnings[:SHOWN]]
        for notice in notices:
            self._tell(notice)
        self._stack.enter_context(self._stop)
        self._steps = loop.steps()
        self._advance()
        return self._steps

    def _advance(self) -> None:
        """End the step whose passes have run, and continue to the next one's. Events after the run's end are handled in `close`."""
        self._passes = None
        for told in self._steps:
            if isinstance(told, Passes):
                self._passes = told
                return
            if self._loop.ended is not None:
                self._late.append(told)
                return
            self._tell(told)

    def _tell(self, event: Event) -> None:
        for watcher in self._watchers:
            watcher(event)


def _sit(lock: FolderLock, folder: Path, *, own_checkpoints: bool) -> None:
    """Take both seats of a run folder (launcher and trainer), as the script launched the run itself. Raises UserError."""
    check_folders(folder, own_checkpoints=own_checkpoints)
    lock.take("launcher", "a run")
    lock.take("trainer")
    clear(folder)
