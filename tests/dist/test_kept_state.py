"""Numbers, flags, modes and extra state: a run that stops and continues is the run that did not, or it is refused at the start."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_optimizer import ScheduleFreeAdamW
from safetensors.torch import load_file
from torch import Tensor

from harness.checkpoint.tensor_slices import SliceReader, whole
from harness.config.loader import decode
from harness.data.sample_order import Order, derive
from harness.data.seeding import ORDER
from harness.engine.initial_model import initial_model
from harness.engine.optimizer_state import tagged, untagged
from harness.engine.plain import pack, unpack
from harness.tools.export import export
from tests.dist.workers.kept_state import BACKENDS, KINDS, Kept, halves, run, tree
from tests.support.processes import run_ranks

REFUSED = {
    "schedulefree": ("zero1", "zero2", "zero3"),
    "prodigy": ("fsdp", "zero1", "zero2", "zero3"),
}
"""What looks at whole weights, or has two kinds of them."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of each kind on each backend, on two ranks."""
    out = tmp_path_factory.mktemp("kept")
    run_ranks(2, ["tests.dist.workers.kept_state", str(out)], out)
    found: dict[str, Any] = json.loads((out / "found.json").read_text())
    return found


def same(found: dict[str, Any]) -> None:
    """The run that was interrupted is the one that was not."""
    assert found["whole"]["refused"] == found["first"]["refused"] == found["then"]["refused"] == ""
    assert found["first"]["losses"] + found["then"]["losses"] == found["whole"]["losses"]
    assert found["then"]["eval"][-1] == found["whole"]["eval"][-1]


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    same(halves(kind, tmp_path / "run"))


@pytest.mark.parametrize("name", [f"{k} {b}" for b in BACKENDS for k in KINDS if b not in REFUSED.get(k, ())])
def test_every_backend_goes_on_to_the_bit(name: str, ranks: dict[str, Any]) -> None:
    same(ranks[name])


@pytest.mark.parametrize("name", [f"{k} {b}" for k, backends in REFUSED.items() for b in backends])
def test_or_refuses_in_words(name: str, ranks: dict[str, Any]) -> None:
    kind, backend = name.split()
    said = {
        "schedulefree": "which cannot switch to ScheduleFreeAdamW's evaluation weights",
        "prodigy": "and Prodigy fails on its sharded tensors" if backend == "fsdp" else "on which Prodigy has a different",
    }
    assert ranks[name]["first"]["refused"].startswith(f"backend.name: is {backend}, {said[kind]}")


def by_hand_schedule_free() -> float:
    """The last evaluation of 20 steps of ScheduleFreeAdamW, in its own modes."""
    recipe = Kept("schedulefree")
    model = initial_model(recipe, 0)
    optimizer = ScheduleFreeAdamW(model.parameters(), lr=0.05)
    optimizer.train()
    rows = torch.from_numpy(Order(64, derive(0, ORDER)).take(0, 160).astype("int64"))
    for part in torch.split(rows, 8):
        loss, count = recipe.loss(model, recipe.data("train").take(part))
        optimizer.zero_grad()
        (loss / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.eval()
    loss, count = recipe.loss(model, recipe.data("valid").take(torch.arange(64)))
    return float(loss.item() / count)


def test_schedule_free_is_evaluated_and_exported_in_its_eval_mode(tmp_path: Path) -> None:
    found = run("schedulefree", tmp_path / "run")
    expected = by_hand_schedule_free()
    assert found["eval"][-1] == pytest.approx(expected, rel=1e-5)
    recipe = Kept("schedulefree")
    export(decode(tree("schedulefree")), tmp_path / "run", tmp_path / "out.safetensors")
    model = recipe.model()
    model.load_state_dict(load_file(tmp_path / "out.safetensors"))
    loss, count = recipe.loss(model, recipe.data("valid").take(torch.arange(64)))
    assert loss.item() / count == pytest.approx(expected, rel=1e-5)


def test_an_optimizer_around_another_is_refused() -> None:
    assert run("lookahead", None)["refused"].startswith("recipe.optimizer(): gives Lookahead, around another one (SGD): its state")


def test_an_optimizer_without_state_is_said() -> None:
    said = "after its first step Silent has an empty `state` and no changed attributes: state kept elsewhere is not saved"
    assert run("silent", None, 2)["notices"] == [said]
    assert run("extra", None, 2, optim={"name": "sgd", "lr": 0.1})["notices"] == []


@pytest.mark.parametrize(
    "value", [0.1, 3, True, False, None, (1, 2), "text", -(1 << 70), torch.tensor(0.1, dtype=torch.float64), [1.5, (2,)]]
)
@pytest.mark.parametrize("scope", ["", "group:", "self:"])
def test_a_number_comes_back_in_its_type(value: Any, scope: str) -> None:
    entry = tagged(f"{scope}key", value)
    if value is None and not scope:
        assert entry is None
        return
    assert entry is not None
    source = SliceReader.of([whole(*entry)])
    name, back = untagged(entry[0], source.whole(entry[0]))
    assert name == f"{scope}key"
    assert type(back) is type(value)
    assert torch.equal(back, value) if isinstance(value, Tensor) else back == value


def test_checkpoints_of_earlier_versions_are_read_as_they_were_written() -> None:
    assert untagged("step", torch.tensor(3.0, dtype=torch.float64)) == ("step", 3.0)
    name, value = untagged("group:step", torch.tensor(3.0, dtype=torch.float64))
    assert (name, value, type(value)) == ("group:step", 3, int)


def test_plain_data_has_a_length_that_a_digit_does_not_change() -> None:
    assert len(pack({"seen": 9})[0]) == len(pack({"seen": 10})[0])
    assert unpack(pack({"a": (1, {2: None})})) == {"a": (1, {2: None})}
    with pytest.raises(TypeError, match="a set"):
        pack({"a": {1}})
