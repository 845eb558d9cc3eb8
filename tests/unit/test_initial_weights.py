"""init_from: each kind of weights gives the same model; what does not fit is listed, and hostile files are refused."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save

from harness.config.errors import UserError
from harness.config.loader import decode, encode
from harness.engine.initial_weights import start_from
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.telemetry.events import Stepped
from harness.training.loop import train
from tests.unit.test_loop import config


class Net(nn.Module):
    """A norm with buffers, and two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.second.weight = self.first.weight


def net(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net()


def safe(weights: dict[str, Tensor], place: Path) -> Path:
    """One safetensors file; like other programs it has a tied weight once."""
    file = place / "weights.safetensors"
    save_file({name: held for name, held in weights.items() if name != "second.weight"}, file)
    return file


def hugging_face(weights: dict[str, Tensor], place: Path) -> Path:
    """A folder of two shards with their index."""
    homes = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    for file in set(homes.values()):
        save_file({name: held.clone() for name, held in weights.items() if homes[name] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return place


def torch_file(weights: dict[str, Tensor], place: Path) -> Path:
    """As a script under DDP saves it."""
    torch.save({"model": {f"module.{name}": held for name, held in weights.items()}}, place / "last.pt")
    return place / "last.pt"


def old_torch_file(weights: dict[str, Tensor], place: Path) -> Path:
    """The format of before torch 1.6, which cannot be mapped."""
    torch.save(weights, place / "old.pth", _use_new_zipfile_serialization=False)
    return place / "old.pth"


def distributed(weights: dict[str, Tensor], place: Path) -> Path:
    """A folder of torch's distributed checkpoint, with an optimizer's state beside the weights."""
    state = {"model": weights, "optim": {"state": {"first.weight": torch.ones(6, 6)}}, "step": 7}
    save(state, checkpoint_id=str(place / "dcp"), no_dist=True)
    return place / "dcp"


KINDS: list[Callable[[dict[str, Tensor], Path], Path]] = [safe, hugging_face, torch_file, old_torch_file, distributed]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_gives_the_same_model(kind: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path) -> None:
    there, here = net(1), net(2)
    there.norm.running_mean = torch.full((6,), 3.0)
    start_from(here, str(kind(there.state_dict(), tmp_path)))
    assert here.second.weight is here.first.weight
    for name, held in there.state_dict().items():
        assert torch.equal(here.state_dict()[name], held), name


def test_half_precision_is_taken_into_the_model_s_own_type(tmp_path: Path) -> None:
    save_file({name: held.bfloat16() for name, held in nn.Linear(3, 3).state_dict().items()}, tmp_path / "half.safetensors")
    model = nn.Linear(3, 3)
    start_from(model, str(tmp_path / "half.safetensors"))
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, model.weight.bfloat16().float())


def test_a_run_starts_from_another_run_and_its_first_loss_is_that_of_these_weights(tmp_path: Path) -> None:
    p = plan(config(), World(1, device="cpu"), 1437)
    list(train(config(), p, cpu=True, folder=tmp_path / "first"))
    begun = config({"init_from": str(tmp_path / "first")})
    losses = {}
    for name, c in (("fresh", config()), ("begun", begun)):
        events = list(train(c, p, cpu=True, folder=tmp_path / name))
        losses[name] = [e.metrics["train/loss"] for e in events if isinstance(e, Stepped)]
    assert losses["begun"][0] < losses["fresh"][0] - 0.1
    again = config({"init_from": str(tmp_path / "first"), "schedule": {"samples": 352}})
    longer = plan(again, World(1, device="cpu"), 1437)
    resumed = list(train(again, longer, cpu=True, folder=tmp_path / "begun"))
    assert not [e for e in resumed if isinstance(e, Stepped) and e.step <= len(losses["begun"])], "its own checkpoint goes first"


def test_what_does_not_fit_is_listed_by_name(tmp_path: Path) -> None:
    weights = net(1).state_dict()
    del weights["norm.weight"], weights["norm.bias"]
    weights["head.weight"] = torch.zeros(2)
    weights["first.bias"] = torch.zeros(7)
    file = safe(weights, tmp_path)
    with pytest.raises(UserError, match="does not fit the model") as found:
        start_from(net(2), str(file))
    for part in ("2 missing: norm.weight, norm.bias", "1 unexpected: head.weight", r"first.bias ((7,) there, (6,) here)"):
        assert part in str(found.value)


def test_a_part_is_taken_where_the_run_says_so_and_the_rest_is_listed(tmp_path: Path) -> None:
    weights = net(1).state_dict()
    del weights["norm.weight"]
    weights["head.weight"] = torch.zeros(2)
    here, fresh = net(2), net(2).state_dict()
    fresh["norm.weight"] = here.norm.weight.data.fill_(5.0).clone()
    listed = start_from(here, str(safe(weights, tmp_path)), partial=True)
    for part in ("of 9 tensors", "1 missing: norm.weight", "1 unexpected: head.weight", "the missing ones are fresh"):
        assert part in listed, listed
    assert torch.equal(here.norm.weight, fresh["norm.weight"])
    assert torch.equal(here.first.weight, weights["first.weight"])
    for wrong in ({"first.bias": torch.zeros(7)}, {"strange": torch.zeros(1)}):
        whole = weights | wrong if "first.bias" in wrong else wrong
        with pytest.raises(UserError, match="does not fit the model"):
            start_from(net(2), str(safe(whole, tmp_path)), partial=True)


def test_a_run_begins_with_a_part_and_says_which(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    p = plan(config(), World(1, device="cpu"), 1437)
    part = load_recipe(config().recipe).model().state_dict()
    gone = list(part)[-1]
    save_file({name: held.contiguous() for name, held in part.items() if name != gone}, tmp_path / "part.safetensors")
    begun = {"init_from": str(tmp_path / "part.safetensors")}
    with pytest.raises(UserError, match="init_partial: true"):
        list(train(config(begun), p, cpu=True, folder=tmp_path / "refused"))
    list(train(replace(config(begun), init_partial=True), p, cpu=True, folder=tmp_path / "run"))
    assert f"1 missing: {gone}" in capfd.readouterr().err
    with pytest.raises(UserError, match="init_partial: is true, without init_from"):
        decode(encode(config()) | {"init_partial": True})


def test_weights_that_are_not_finite_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    for name, odd, match in (
        ("first.bias", torch.full((6,), float("nan")), "is not finite"),
        ("first.bias", torch.ones(6).int(), "int32"),
    ):
        with pytest.raises(UserError, match=match):
            start_from(net(2), str(safe(net(1).state_dict() | {name: odd}, tmp_path)))


class Hostile:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def hostile_pickle(place: Path, mark: Path) -> Path:
    torch.save({"first.weight": torch.ones(6, 6), "more": Hostile(mark)}, place / "a.pt")
    return place / "a.pt"


def hostile_metadata(place: Path, mark: Path) -> Path:
    folder = distributed(net(1).state_dict(), place)
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(mark)))
    return folder


def hostile_index(place: Path, mark: Path) -> Path:
    folder = hugging_face(net(1).state_dict(), place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"first.weight": "../secret.safetensors"}}))
    return folder


def hostile_header(place: Path, mark: Path) -> Path:
    (place / "b.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    return place / "b.safetensors"


def cut(place: Path, mark: Path) -> Path:
    file = safe(net(1).state_dict(), place)
    file.write_bytes(file.read_bytes()[:-4])
    return file


def cut_distributed(place: Path, mark: Path) -> Path:
    folder = distributed(net(1).state_dict(), place)
    for file in folder.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:200])
    return folder


def outside_distributed(place: Path, mark: Path) -> Path:
    """Metadata whose records name a file elsewhere."""
    folder = distributed(net(1).state_dict(), place)
    found = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301  written two lines above
    for info in found.storage_data.values():
        info.relative_path = "../../etc/passwd"
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [hostile_pickle, hostile_metadata, hostile_index, hostile_header, cut, cut_distributed, outside_distributed],
    ids=lambda make: make.__name__,
)
def test_hostile_and_damaged_files_are_refused_and_run_nothing(make: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "place").mkdir()
    place = make(tmp_path / "place", mark)
    with pytest.raises(UserError, match=r"^init_from: "):
        start_from(net(2), str(place))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["nothing", "nothing.pt", "a.txt"])
def test_what_is_no_weights_is_refused_with_the_kinds_there_are(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"give a \.safetensors file, a Hugging Face folder"):
        start_from(net(1), str(tmp_path / name))


def test_digits_begin_from_what_export_wrote(tmp_path: Path) -> None:
    recipe = load_recipe(config().recipe)
    torch.manual_seed(5)
    model = recipe.model()
    save_file(model.state_dict(), tmp_path / "exported.safetensors")
    other = recipe.model()
    start_from(other, str(tmp_path / "exported.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
