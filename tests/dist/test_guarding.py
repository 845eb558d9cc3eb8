"""What the guard does about trouble, and what a batch that changes does to a run: in one process, on real losses."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import Config
from harness.plan.guard_policy import PRESETS, answer, policy
from harness.plan.lr_schedule import Schedule
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Sum
from harness.recipes.digits import Digits
from harness.telemetry.events import Ended, Evaluated, Event, Metrics, Noticed, Saved, Started, Stepped, Windowed
from harness.training.adaptive_batch import better as is_better
from harness.training.adaptive_batch import patience_again
from harness.training.guard import REMEMBERED
from harness.training.loop import train
from tests.support.processes import ROOT, run_ranks

HERE = Path(__file__)


@dataclass(frozen=True)
class Faulty(Digits):
    """Digits with planted trouble."""

    width: int = 4
    loud: bool = False
    """Whether the image LOUD counts ten thousand times."""
    fits: int = 10**9
    """Samples that fit in memory in one pass."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Raises torch.OutOfMemoryError for a batch that does not fit."""
        if len(batch["label"]) > self.fits and model.training:
            raise torch.OutOfMemoryError(f"{len(batch['label'])} samples do not fit")
        losses = cross_entropy(model(batch["image"]), batch["label"], reduction="none")
        if self.loud and model.training:
            mine = (batch["image"] == LOUD.to(batch["image"])).flatten(1).all(1).to(losses)
            losses = losses * (1 + 1e4 * mine)
        return losses.sum(), len(losses)


LOUD = Digits().data("train").columns["image"][700]


def config(over: Mapping[str, Any]) -> Config:
    """3,200 samples in 100 steps on digits, with sections replaced."""
    base: dict[str, Any] = {
        "recipe": {"use": f"{HERE}:Faulty"},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.05, "momentum": 0.9},
        "schedule": {"samples": 3200},
        "watch": {"wandb": "off", "every_steps": 5},
    }
    return decode(base | dict(over))


def run(c: Config, folder: Path | None = None) -> list[Event]:
    """All events of a run in this process."""
    return list(train(c, plan(c, World(1, device="cpu"), 1437), cpu=True, folder=folder))


def steps(events: list[Event]) -> list[Stepped]:
    return [e for e in events if isinstance(e, Stepped)]


def codes(events: list[Event]) -> list[str]:
    return [e.code for e in events if isinstance(e, Noticed)]


def last_window(events: list[Event]) -> dict[str, float]:
    """The last window's metrics that are known."""
    return {k: v for k, v in [e for e in events if isinstance(e, Windowed)][-1].metrics.items() if v is not None}


def end(events: list[Event]) -> Ended:
    last = events[-1]
    assert isinstance(last, Ended)
    return last


@pytest.mark.parametrize("spike", ["note", "clip", "skip"])
def test_a_spike_is_told_clipped_or_left_out_before_the_weights_move(spike: str) -> None:
    recipe = {"use": f"{HERE}:Faulty", "loud": True}
    events = run(config({"recipe": recipe, "guard": {"spike": spike}, "optim": {"lr": 0.01}}))
    told = [s.metrics for s in steps(events)]
    loud = [m for m in told if m["train/grad_norm"] > 100]
    assert loud, "the planted sample was met"
    assert "spike" in codes(events)
    factor = loud[-1]["train/clip_factor"]
    assert {"note": factor == 1, "clip": 0 < factor < 0.1, "skip": factor == 0}[spike]
    assert [e for e in events if isinstance(e, Windowed)][-1].metrics["stability/skipped_steps"] == codes(events).count("spared")
    assert ("spared" in codes(events)) == (spike == "skip")
    assert [e for e in events if isinstance(e, Windowed)][-1].metrics["stability/nonfinite_steps"] == 0


def spiked_rates(monkeypatch: pytest.MonkeyPatch, steps: int = 5, by: float = 500.0) -> None:
    """The first `steps` steps from sample 1,600 on have `by` times the schedule's rate."""
    usual, left = Schedule.lr, [steps]

    def lr(self: Schedule, samples: float, batch: int) -> float:
        if samples < 1600 or not left[0]:
            return usual(self, samples, batch)
        left[0] -= 1
        return usual(self, samples, batch) * by

    monkeypatch.setattr(Schedule, "lr", lr)


@pytest.mark.parametrize("by", [50.0, 500.0])
@pytest.mark.parametrize("policy", ["watch", "protect"])
def test_a_rate_that_ruins_the_run_is_rolled_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy: str, by: float) -> None:
    spiked_rates(monkeypatch, by=by)
    over = {"guard": {"policy": policy, "spike": "note"}, "checkpoint": {"every_samples": 640, "keep": 9}}
    events = run(config(over | {"eval": {"every_samples": 3200}, "optim": {"lr": 0.02, "momentum": 0.9}}), tmp_path)
    assert "divergence" in codes(events)
    accuracy = end(events).metrics["eval/accuracy_pct"]
    assert accuracy is not None
    if policy == "watch":
        assert accuracy < 50
        return
    assert accuracy > 85
    back = next(e for e in events if isinstance(e, Noticed) and e.code == "roll_back")
    assert back.samples <= 1600, "the checkpoint from before the trouble"
    assert "left out" in back.message
    last = last_window(events)
    assert last["stability/rollbacks"] >= 1
    assert last["reliability/lost_s"] == last["reliability/rolled_back_s"] > 0, "no restart lost any of it"
    windows = [e.metrics for e in events if isinstance(e, Windowed)]
    forward = ("progress/samples_trained", "stability/spikes", "stability/skipped_steps")
    told = {name: [float(w[name] or 0) for w in windows] for name in ("progress/samples", *forward)}
    assert [name for name, values in told.items() if values != sorted(values)] == ["progress/samples"], "it alone runs back"
    assert end(events).samples == 3200


def test_validations_show_sooner_than_the_losses_that_a_run_is_thrown_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch, by=50)
    events = run(config({"eval": {"every_samples": 160}, "optim": {"lr": 0.02, "momentum": 0.9}, "guard": {"spike": "note"}}))
    assert next(e.step for e in events if isinstance(e, Noticed) and e.code in ("divergence", "dead")) == 65


@pytest.mark.parametrize(("policy", "seed"), [("watch", 0), ("protect", 0), ("protect", 1)])
def test_digits_at_64_times_the_batch_with_a_rate_that_diverges(tmp_path: Path, policy: str, seed: int) -> None:
    over = {
        "recipe": {"use": "digits"},
        "batch": {"reference": 32, "total": 2048},
        "optim": {"lr": 0.1, "momentum": 0.9},
        "scaling": {"warmup_epochs": 5},
        "schedule": {"epochs": 200, "shape": "cosine"},
        "eval": {"every_epochs": 50},
        "checkpoint": {"every_epochs": 10},
        "guard": {"policy": policy},
        "watch": {"wandb": "off"},
        "run": {"seed": seed},
    }
    events = run(config(over), tmp_path)
    last = end(events)
    assert last.reason == ("guard" if policy == "watch" else "complete")
    if policy == "protect":
        accuracy = last.metrics["eval/accuracy_pct"]
        assert accuracy is not None
        assert accuracy > 80
        assert "rolled back" in last.message
        backs = [e.message for e in events if isinstance(e, Noticed) and e.code == "roll_back"]
        assert "lr x 0.5 " in backs[0]
        assert "lr x 0.125 " in backs[1], "what did not help is pressed harder the next time"
    else:
        assert "--batch.total" in last.message or "--scaling.rule" in last.message, "what to try next is said"


@pytest.mark.parametrize("backend", ["ddp", "fsdp"])
def test_two_ranks_roll_back_and_leave_out_the_samples_that_did_it(tmp_path: Path, backend: str) -> None:
    tree = {
        "recipe": {"use": f"{ROOT}/tests/dist/workers/ruinous.py:Ruinous"},
        "batch": {"reference": 16, "total": 16},
        "optim": {"lr": 0.05, "momentum": 0.9},
        "schedule": {"samples": 1424},
        "backend": {"name": backend},
        "checkpoint": {"every_samples": 160},
        "guard": {"policy": "protect", "spike": "note"},
        "watch": {"wandb": "off", "every_steps": 5},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    run_ranks(2, ["harness", str(tmp_path / "run.yaml")], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    back = [line for line in lines if line.get("code") == "roll_back"]
    assert len(back) == 1, "once: what ruins the run is met no second time"
    assert json.loads((tmp_path / "run" / "guard.json").read_text())["gaps"] == [[640, 720]], "the window of the step"
    last = lines[-1]
    assert (last["reason"], last["samples"]) == ("complete", 1424)
    assert last["eval/accuracy_pct"] > 60
    assert "rolled back 1x" in last["message"]


def test_a_restart_does_not_undo_a_roll_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch)
    over = {"guard": {"policy": "protect", "spike": "note"}, "checkpoint": {"every_samples": 640}, "optim": {"lr": 0.02}}
    events = train(config(over), plan(config(over), World(1, device="cpu"), 1437), cpu=True, folder=tmp_path)
    back = next(e for e in events if isinstance(e, Noticed) and e.code == "roll_back")
    del events  # the process is gone before it saves again
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("samples-*"))
    assert names[-1] == f"samples-{back.samples:012d}", "what was given up is gone"
    again = run(config(over), tmp_path)
    assert isinstance(again[0], Started)
    assert again[0].samples == back.samples
    first = last_window(again[: next(n for n, e in enumerate(again) if isinstance(e, Windowed)) + 1])
    assert first["stability/rollbacks"] == 1
    assert first["stability/lr_factor"] == 0.5


def test_the_samples_of_a_gap_are_left_out_and_the_schedule_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch)
    over = {"guard": {"divergence": "roll_back", "factor": 0.01}, "checkpoint": {"every_samples": 640}}
    events = run(config(over | {"optim": {"lr": 0.02, "momentum": 0.9}}), tmp_path)
    document = json.loads((sorted((tmp_path / "checkpoints").iterdir())[-1] / "state.json").read_text())
    state = State.from_json(document["state"])
    assert state.guard.gaps == ((1600, 1760),), "the window with which it began"
    left_out = sum(stop - start for start, stop in state.guard.gaps)
    assert state.scheduled == 3200 - left_out
    assert end(events).samples == 3200


def test_a_roll_back_of_a_run_that_was_renamed_finds_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch)
    over = {"guard": {"divergence": "roll_back", "factor": 0.01}, "checkpoint": {"every_samples": 640}}
    c = config(over | {"optim": {"lr": 0.02, "momentum": 0.9}})
    old, new = tmp_path / "old", tmp_path / "new"
    events = list[Event]()
    for event in train(c, plan(c, World(1, device="cpu"), 1437), cpu=True, folder=old):
        if isinstance(event, Saved) and not new.exists():
            old.rename(new)
        events.append(event)
    assert "roll_back" in codes(events)
    assert end(events).reason == "complete"
    assert (new / REMEMBERED).exists()
    assert not old.exists()


def test_backing_off_lowers_the_rate_and_the_rate_climbs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch)
    guard = {"divergence": "back_off", "factor": 0.25, "recover_samples": 640, "nonfinite": "skip", "budget": 1000}
    events = run(config({"guard": guard, "optim": {"lr": 0.02, "momentum": 0.9}}))
    backed = next(e for e in events if isinstance(e, Noticed) and e.code == "back_off")
    assert "guard" not in backed.message
    assert "try" in backed.message, "what to do about it is said"
    after = {s.samples - 32 - backed.samples: s.metrics["train/lr"] for s in steps(events) if s.samples > backed.samples}
    assert after[0] == pytest.approx(0.25 * 0.02)
    assert after[320] == pytest.approx(0.625 * 0.02)


def test_a_spent_budget_of_interventions_stops_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch, steps=99)
    guard = {"divergence": "back_off", "factor": 0.9, "interventions": 1, "budget": 1000}
    events = run(config({"guard": guard, "optim": {"lr": 0.02, "momentum": 0.9}}))
    assert end(events).reason == "guard"
    assert "guard.interventions 1 are used up" in end(events).message
    assert codes(events).count("back_off") == 1


def test_warming_up_again_starts_at_the_reference_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch)
    over = {"batch": {"reference": 8, "total": 32}, "optim": {"lr": 0.02, "momentum": 0.9}, "scaling": {"warmup_samples": 320}}
    events = run(config(over | {"guard": {"divergence": "warm_up", "budget": 1000}}))
    warmed = next(n for n, e in enumerate(events) if isinstance(e, Noticed) and e.code == "warm_up")
    after = [s.metrics["train/lr"] for s in steps(events[warmed:])]
    assert after[0] == pytest.approx(0.02)
    assert after[4] == pytest.approx(0.02 + 0.06 * 4 * 32 / 640), "over twice the warm-up's 320 samples"


def test_without_a_checkpoint_to_go_back_to_the_run_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    spiked_rates(monkeypatch)
    events = run(config({"guard": {"divergence": "roll_back", "budget": 1000}, "optim": {"lr": 0.02, "momentum": 0.9}}))
    assert end(events).reason == "guard"
    assert "no good checkpoint" in end(events).message


def test_rolling_back_has_a_checkpoint_from_the_start(tmp_path: Path) -> None:
    events = run(config({"guard": {"policy": "protect"}, "run": {"stop_after_steps": 3}}), tmp_path)
    assert [e.samples for e in events if isinstance(e, Saved)] == [0, 96]


def test_the_stronger_answer_counts_and_a_preset_can_be_overruled() -> None:
    guard = config({"guard": {"policy": "protect", "dead": "stop"}}).guard
    assert policy(guard) == PRESETS["protect"] | {"dead": "stop"}
    assert answer(guard, ["dead", "divergence"]) == ("stop", "dead")
    assert answer(guard, ["divergence", "erratic"]) == ("roll_back", "divergence")
    assert answer(guard, ["spike"]) is None, "clipped inside the step"
    assert answer(config({}).guard, ["divergence", "spike", "nonfinite"]) is None, "skipped inside the step"


@pytest.mark.parametrize(
    ("guard", "over", "setting"),
    [
        ({"divergence": "warm_up"}, {}, "guard.divergence"),
        ({"spike": "skip"}, {"backend": {"name": "zero2"}}, "guard.spike"),
        ({"recover_samples": 9, "recover_epochs": 1}, {}, "guard.recover_epochs"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(guard: dict[str, Any], over: dict[str, Any], setting: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(config({"guard": guard} | over), World(1, device="cpu"), 1437)
    assert caught.value.setting == setting


def test_a_pass_that_does_not_fit_is_done_again_in_smaller_ones() -> None:
    recipe = {"use": f"{HERE}:Faulty", "fits": 8}
    told, usual = run(config({"recipe": recipe})), run(config({"batch": {"reference": 32, "total": 32, "micro": 8}}))
    assert codes(told).count("out_of_memory") == 2, "32 -> 16 -> 8"
    losses = [[s.metrics["train/loss"] for s in steps(events)] for events in (told, usual)]
    assert losses[0] == losses[1], "the same run, bit for bit, as one planned in passes of 8"


def test_memory_that_runs_out_in_the_middle_of_a_window_loses_no_step() -> None:
    events = run(config({"recipe": {"use": f"{HERE}:Faulty", "fits": 20}, "batch": {"reference": 32, "total": 32, "grow": "ramp",
        "ramp_start": 16, "ramp_increment": 16, "ramp_samples": 128}}))  # fmt: skip
    assert codes(events).count("out_of_memory") == 1
    assert [s.samples for s in steps(events)][:10] == [16, 32, 48, 64, 80, 96, 112, 128, 160, 192]
    assert end(events).samples == 3200


def test_patience_stops_a_run_that_no_longer_improves() -> None:
    over = {"optim": {"lr": 1e-9}, "eval": {"every_samples": 320, "patience_samples": 640}}
    events = run(config(over))
    assert end(events).reason == "early_stop"
    assert "no better eval/loss" in end(events).message
    assert end(events).samples < 3200


def test_an_improvement_by_less_than_min_delta_does_not_renew_the_patience() -> None:
    """It is the best so far all the same."""
    events = run(config({"eval": {"every_samples": 320, "patience_samples": 640, "min_delta": 2.0}}))
    assert end(events).reason == "early_stop"
    assert "no better eval/loss by 2 for 640 samples" in end(events).message
    assert [e.best for e in events if isinstance(e, Evaluated)] == [True, True, True]


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_the_patience_counts_from_the_last_improvement_by_min_delta(better: str) -> None:
    """Small improvements that add up to it count as one, as with Keras's and Lightning's min_delta."""
    sign = -1.0 if better == "higher" else 1.0
    told = config({"eval": {"better": better, "patience_samples": 640, "min_delta": 0.25}})
    state, counted = State(), []
    for loss in (2.0, 1.875, 1.75, 1.625, math.nan, 1.5, 1.75):
        metrics: Metrics = {"eval/loss": sign * loss}
        counted.append(patience_again(told, state, metrics))
        if is_better(told, state, metrics):
            state = replace(state, best=metrics)
        if counted[-1]:
            state = replace(state, best_then=sign * loss)
    assert counted == [True, False, True, False, False, True, False]
    assert state.best == {"eval/loss": sign * 1.5}


def test_a_plateau_of_the_accuracy_may_grow_the_batch() -> None:
    schedule = {"samples": 3200, "shape": "plateau", "every": 320, "gamma": 0.5, "on_plateau": "grow_batch"}
    over = {"optim": {"lr": 1e-9}, "schedule": schedule, "batch": {"reference": 32, "total": 32, "most": 64}}
    events = run(config(over | {"eval": {"every_samples": 320, "metric": "eval/accuracy_pct", "better": "higher"}}))
    sizes = [s.metrics["batch/samples"] for s in steps(events)]
    assert set(sizes) == {32, 64}
    assert sizes == sorted(sizes)
    assert "plateau" in codes(events), "past batch.most the rate is lowered after all"


RAMP = {"reference": 48, "total": 48, "grow": "ramp", "ramp_start": 16, "ramp_increment": 16, "ramp_samples": 640}
STEPS = {"reference": 48, "steps": [[0, 16], [320, 32], [640, 48]]}


@pytest.mark.parametrize(("batch", "cut"), [(RAMP, 7), (RAMP, 26), (STEPS, 26)])
def test_a_ramp_or_steps_cut_in_the_middle_go_on_bit_for_bit(tmp_path: Path, batch: dict[str, Any], cut: int) -> None:
    whole = run(config({"batch": batch}))
    first = run(config({"batch": batch, "run": {"stop_after_steps": cut}}), tmp_path)
    second = run(config({"batch": batch}), tmp_path)
    names = ("train/loss", "train/lr", "batch/samples")
    told = [[(s.step, s.samples, *(s.metrics[n] for n in names)) for s in steps(e)] for e in (whole, [*first, *second])]
    assert told[0] == told[1]
    assert {s.metrics["batch/samples"] for s in steps(whole)} == {16, 32, 48}
    rates = {s.metrics["batch/samples"]: s.metrics["train/lr"] for s in reversed(steps(whole))}  # the last step is a short one
    assert rates[48] == pytest.approx(rates[16] * (3 if batch is STEPS else 1)), "steps follow the rule, linear; a ramp keeps lr"
    passes = [e.metrics["batch/accumulate"] for e in whole if isinstance(e, Windowed)][-1]
    assert passes == (3 if batch is STEPS else 1), "passes are those of the plan's own batch: of steps the first"


@pytest.mark.slow
def test_the_batch_follows_the_noise_scale_within_its_bounds() -> None:
    batch = {"reference": 8, "total": 8, "grow": "noise", "most": 64, "micro": 4}
    events = run(config({"batch": batch, "optim": {"lr": 0.01, "momentum": 0.9}, "schedule": {"samples": 20_000}}))
    sizes = [s.metrics["batch/samples"] for s in steps(events)][:-1]
    assert max(sizes) > 8
    assert max(sizes) <= 64
    for e in events:
        if isinstance(e, Noticed) and e.code == "batch":
            assert "noise scale" in e.message
    rates = {size: s.metrics["train/lr"] for size, s in zip(sizes, steps(events), strict=False)}
    assert all(rate == pytest.approx(0.01 * size / 8) for size, rate in rates.items()), "by the run's rule, linear"


def test_adascale_spends_its_gain_and_ends_where_the_reference_schedule_does() -> None:
    over = {
        "batch": {"reference": 8, "total": 64, "micro": 8},
        "scaling": {"rule": "adascale"},
        "schedule": {"samples": 8000, "shape": "cosine"},
        "optim": {"lr": 0.01, "momentum": 0.9},
    }
    events = run(config(over))
    c = config(over)
    p = plan(c, World(1, device="cpu"), 1437)
    windows = [e.metrics for e in events if isinstance(e, Windowed)]
    assert end(events).reason == "complete"
    assert 8000 < end(events).samples < 8 * 8000, "more samples than the reference, fewer than k times as many"
    assert last_window(events)["progress/scheduled_samples"] >= 8000
    clock = 0.0
    for before, now in pairwise(windows):
        gain = before["batch/scaling_gain"] or 1.0
        assert 1 <= gain <= 8
        first = next(s for s in steps(events) if s.samples == (before["progress/samples"] or 0) + 64)
        clock = before["progress/scheduled_samples"] or 0.0
        assert first.metrics["train/lr"] == pytest.approx(p.lr_at(clock) * gain)
        assert (now["progress/scheduled_samples"] or 0) - clock == pytest.approx(
            gain * 8 * ((now["progress/step"] or 0) - (before["progress/step"] or 0))
        )


def test_adascale_for_adam_takes_the_root_of_the_gain_and_its_budget_ends_it() -> None:
    over = {
        "batch": {"reference": 8, "total": 64, "micro": 8},
        "scaling": {"rule": "adascale", "budget_samples": 9600},
        "schedule": {"samples": 8000},
        "optim": {"name": "adam", "lr": 1e-3},
    }
    events = run(config(over))
    assert end(events).samples == 9600
    window = [e.metrics for e in events if isinstance(e, Windowed)][3]
    rate = next(s.metrics["train/lr"] for s in steps(events) if s.samples > (window["progress/samples"] or 0))
    assert rate == pytest.approx(1e-3 * math.sqrt(window["batch/scaling_gain"] or 1))


def test_adascale_is_planned_with_what_it_may_and_is_expected_to_spend() -> None:
    over = {"batch": {"reference": 32, "total": 256}, "scaling": {"rule": "adascale", "noise_scale": 224.0}}
    p = plan(config(over), World(1, device="cpu"), 1437)
    assert p.target_lr == p.reference_lr
    assert p.total_samples == 8 * 3200
    gain = (224 / 32 + 1) / (224 / 256 + 1)
    assert f"about {round(3200 * 8 / gain)} samples are expected" in p.sources["total_steps"]
    tight = plan(config(over | {"scaling": {"rule": "adascale", "noise_scale": 224.0, "budget_samples": 4000}}), World(1), 1437)
    assert "over_budget" in [w.code for w in tight.warnings]
