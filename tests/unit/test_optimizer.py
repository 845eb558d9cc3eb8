"""Every optimizer of the table is what it says, trains, and continues after a resume as if nothing had been."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import Config
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.engine.factory import open_engine
from harness.engine.optimizer_state import OwnNumbers, load_optimizer
from harness.modeling.optimizer import build_optimizer
from harness.modeling.trial_step import check_step
from harness.plan.installed_optimizers import sources
from harness.plan.optimizers import OPTIMIZERS
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.telemetry.events import Event, Stepped
from harness.training.loop import train

TEXT = {"use": "bytes_lm", "width": 16, "depth": 1, "heads": 2, "context": 16, "max_bytes": 10_000}


def config(**optim: Any) -> Config:
    """A few steps on digits."""
    return decode(
        {
            "recipe": TEXT if optim.get("name") == "muon" else {"use": "digits", "width": 4},
            "batch": {"reference": 32, "total": 32},
            "optim": {"lr": 0.01} | optim,
            "schedule": {"samples": 192},
            "watch": {"wandb": "off"},
        }
    )


def run(c: Config, folder: Path, stop_after: int | None) -> Iterator[Event]:
    """Train in this process."""
    tree = Config(**{**vars(c), "run": type(c.run)(stop_after_steps=stop_after)})
    return train(tree, plan(tree, World(1, device="cpu")), cpu=True, folder=folder)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_each_optimizer_trains_and_resumes_exactly(name: str, tmp_path: Path) -> None:
    c = config(name=name)
    whole = [e.metrics for e in run(c, tmp_path / "whole", None) if isinstance(e, Stepped)]
    halves = [e.metrics for stop in (3, None) for e in run(c, tmp_path / "halves", stop) if isinstance(e, Stepped)]
    assert len(whole) == len(halves) == 6
    assert halves == whole
    assert whole[-1]["train/loss"] != whole[0]["train/loss"]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_table_s_defaults_are_the_optimizer_s_own(name: str) -> None:
    facts = OPTIMIZERS[name]
    package, _, kind = facts.source.rpartition(".")
    optimizer = vars(import_module(package))[kind]([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.01)
    own: dict[str, Any] = optimizer.defaults | optimizer.param_groups[0]
    for setting in ("momentum",) if name == "muon" else ("momentum", "betas", "eps"):
        known = getattr(facts, setting)
        assert known == own.get(setting) or name == "nesterov" or (name, setting) == ("adafactor", "eps"), setting


def test_norms_and_biases_do_not_decay() -> None:
    c = config(name="adamw", weight_decay=0.3)
    recipe = load_recipe(c.recipe)
    optimizer = build_optimizer(plan(c, World(1, device="cpu")), recipe, recipe.model(), fused=False)
    decayed = {group["weight_decay"]: {p.ndim >= 2 for p in group["params"]} for group in optimizer.param_groups}
    assert decayed == {0.3: {True}, 0.0: {False}}


@pytest.mark.parametrize("name", ["asgd", "rprop", "prodigy", "adan"])
def test_an_optimizer_that_the_plan_does_not_know_trains_and_resumes(name: str, tmp_path: Path) -> None:
    c = config(name=name)
    whole = [e.metrics for e in run(c, tmp_path / "whole", None) if isinstance(e, Stepped)]
    halves = [e.metrics for stop in (3, None) for e in run(c, tmp_path / "halves", stop) if isinstance(e, Stepped)]
    assert halves == whole
    assert whole[-1]["train/loss"] != whole[0]["train/loss"]


def test_every_class_of_torch_and_pytorch_optimizer_has_its_name_and_steps_or_is_refused_in_a_line() -> None:
    own = [k for k in vars(torch.optim).values() if isinstance(k, type) and issubclass(k, Optimizer) and k is not Optimizer]
    found = sources()
    assert found.keys() >= {k.__name__.lower() for k in own} | {
        k.__name__.lower() for k in pytorch_optimizer.optimizer.OPTIMIZER_LIST
    }
    refused = {}
    for name, source in found.items():
        package, _, kind = source.rpartition(".")
        try:
            check_step(name, vars(import_module(package))[kind], 0.01, 0.0, [torch.Size([6, 4]), torch.Size([6])])
        except UserError as e:
            refused[name] = str(e)
    assert not any("\n" in line for line in refused.values())
    assert {"lbfgs", "sam", "alig", "sparseadam", "adahessian", "adammini", "lookahead", "muonclip"} <= refused.keys()
    assert len(found) - len(refused) > 100


def test_what_the_plan_does_not_know_of_an_optimizer_is_asked_for() -> None:
    far = {"batch": {"reference": 16, "total": 32}, "optim": {"name": "prodigy", "lr": 1.0}, "schedule": {"samples": 192}}
    with pytest.raises(UserError, match=r"scaling.rule: is auto, which knows no rule for this optimizer at ratio 2; give sqrt"):
        plan(decode(far | {"scaling": {"rule": "auto"}}), World(1, device="cpu"))
    assert plan(decode(far | {"scaling": {"rule": "sqrt", "warmup_samples": 32}}), World(1, device="cpu")).rule == "sqrt"
    for wrong, says in (
        ({"optim": {"name": "prodigy", "lr": 1.0, "betas": [0.9, 0.99]}}, r"optim.betas: .* what it does to prodigy"),
        ({"backend": {"name": "fsdp"}}, "optim.name: is prodigy, which pytorch_optimizer.Prodigy does not do on fsdp"),
        ({"optim": {"name": "Prodigy", "lr": 1.0}}, r"optim.name: .* did you mean prodigy\?"),
        ({"optim": {"name": "nonesuch", "lr": 1.0}}, "optim.name: .* known: sgd, nesterov, .* classes of torch.optim"),
    ):
        with pytest.raises(UserError, match=says):
            plan(decode(far | {"scaling": {"rule": "sqrt", "warmup_samples": 32}} | wrong), World(1, device="cpu"))
    with pytest.raises(UserError, match=r"optim.weight_decay: is 0.1, but rprop has no weight decay"):
        check_step("rprop", torch.optim.Rprop, 0.1, 0.1, [torch.Size([2])])


RECIPE = """
from dataclasses import dataclass
from harness.recipes.base import Group
from harness.recipes.digits import Digits

@dataclass(frozen=True)
class Slow(Digits):
    lost: bool = False

    def groups(self, model):
        first, *rest = model.parameters()
        return [Group([first], lr=0.0)] + ([] if self.lost else [Group(rest, lr=0.5)])
"""


def moved(c: Config) -> list[torch.Tensor]:
    """By how much one step moves each parameter."""
    recipe = load_recipe(c.recipe)
    engine = open_engine(c, plan(c, World(1, device="cpu")), recipe, cpu=True)
    before = [w.detach().clone() for w in engine.model.parameters()]
    data = recipe.data("train")
    assert isinstance(data, Table)
    engine.step([Micro(data.take(torch.arange(32)), Chunk(0, 32))], 0.01, False)
    return [w.detach() - was for w, was in zip(engine.model.parameters(), before, strict=True)]


def test_a_recipe_s_groups_have_rates_of_their_own(tmp_path: Path) -> None:
    """A group at factor 0 stays as it was made, the rest moves at half the plan's rate."""
    (tmp_path / "slow.py").write_text(RECIPE)
    own = replace(config(), recipe=replace(config().recipe, use=f"{tmp_path}/slow.py:Slow"))
    slow, plain = moved(own), moved(config())
    assert not slow[0].any()
    assert plain[0].any()
    for ours, full in zip(slow[1:], plain[1:], strict=True):
        torch.testing.assert_close(ours, full / 2, rtol=1e-4, atol=1e-8)


def test_a_parameter_that_is_in_no_group_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(RECIPE)
    lost = replace(config().recipe, use=f"{tmp_path}/slow.py:Slow", knobs={"width": 4, "lost": True})
    with pytest.raises(UserError, match=r"recipe.use: groups\(\) gives the parameter 0.bias 0 times"):
        moved(replace(config(), recipe=lost))


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    c = config(name="muon", weight_decay=0.3)
    recipe = load_recipe(c.recipe)
    model = recipe.model()
    optimizer = build_optimizer(plan(c, World(1, device="cpu")), recipe, model, fused=False)
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for g in optimizer.param_groups if g["use_muon"] for p in g["params"]}
    assert hidden == {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert {g["lr_scale"] for g in optimizer.param_groups} == {1.0}
    with pytest.raises(UserError, match="is muon, but the recipe names no blocks"):
        moved(replace(c, recipe=config().recipe))


def test_muon_steps_as_torch_s_muon_and_adamw_do_at_their_own_rates() -> None:
    c = config(name="muon", weight_decay=0.3, adamw_lr=0.003, momentum=0.9, betas=(0.8, 0.98))
    recipe = load_recipe(c.recipe)
    models = [recipe.model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = build_optimizer(plan(c, World(1, device="cpu")), recipe, models[0], fused=False)
    for group in ours.param_groups:
        group["lr"] = 0.01 * group["lr_scale"]  # as the engine does
    hidden = [p for n, p in models[1].named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    rest = [p for n, p in models[1].named_parameters() if not (n.startswith("blocks.") and p.ndim == 2)]
    decayed: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim == 2]},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs: list[Optimizer] = [
        torch.optim.Muon(hidden, lr=0.01, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(decayed, lr=0.003, weight_decay=0.3, betas=(0.8, 0.98)),
    ]
    for seed in range(3):
        for model in models:
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
        for optimizer in (ours, *theirs):
            optimizer.step()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_adamw_lr_is_muon_s_and_follows_the_rule() -> None:
    far = {"batch": {"reference": 16, "total": 64}, "schedule": {"samples": 640}, "scaling": {"warmup_samples": 64}}
    made = plan(decode(far | {"optim": {"name": "muon", "lr": 0.01, "adamw_lr": 0.004}}), World(1, device="cpu"))
    assert (made.rule, made.target_lr, made.adamw_lr) == ("sqrt", 0.02, 0.008)
    assert plan(decode(far | {"optim": {"name": "muon", "lr": 0.01}}), World(1, device="cpu")).adamw_lr == 0.02
    assert plan(decode(far | {"optim": {"name": "adamw", "lr": 0.01}}), World(1, device="cpu")).adamw_lr is None
    with pytest.raises(UserError, match=r"optim.adamw_lr: is 0.004, but adamw has one rate for all parameters"):
        plan(decode(far | {"optim": {"name": "adamw", "lr": 0.01, "adamw_lr": 0.004}}), World(1, device="cpu"))


@pytest.mark.parametrize("backend", ["fsdp", "zero1", "zero2", "zero3"])
def test_muon_is_refused_where_matrices_are_sharded(backend: str) -> None:
    cut = {"batch": {"reference": 16, "total": 16}, "optim": {"name": "muon", "lr": 0.01}, "schedule": {"samples": 64}}
    with pytest.raises(UserError, match=r"optim.name: is muon, which .* use another optimizer, or backend.name: ddp"):
        plan(decode(cut | {"backend": {"name": backend}}), World(2, device="cpu"))


def test_a_checkpoint_of_the_muon_of_earlier_versions_is_refused() -> None:
    recipe = load_recipe(config(name="muon").recipe)
    model = recipe.model()
    optimizer = build_optimizer(plan(config(name="muon"), World(1, device="cpu")), recipe, model, fused=False)
    name = "blocks.0.qkv.weight"
    held = {f"{name}/momentum_buffer": torch.zeros(48, 16), f"{name}/group:int:step": torch.tensor(3)}
    with pytest.raises(UserError, match="is of pytorch_optimizer's Muon, whose lr means another size of update"):
        load_optimizer(model, optimizer, OwnNumbers(optimizer), held)
