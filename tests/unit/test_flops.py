"""Operations are counted for any model, by formulas where there are some; a count that fails says why."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from harness.config.loader import decode
from harness.config.schema import Knob, RecipeConfig
from harness.data.feed import Data, Table
from harness.modeling import flops
from harness.modeling.flops import CountError, Example, count_flops
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.telemetry.events import Noticed, Windowed
from harness.training.loop import train

SMALL = ["hidden_size=64", "intermediate_size=128", "num_hidden_layers=2", "num_attention_heads=4", "num_key_value_heads=2"]
ANY = 10**12
"""Parameters of a model that is too large for a pass on the host."""


def text(context: int) -> Example:
    """Batches of full rows."""
    return lambda n: ({"tokens": torch.randint(0, 100, (n, context + 1)), "length": torch.full((n,), context + 1)}, n)


def language_model(kind: str, overrides: list[str], context: int) -> Recipe:
    """A recipe of causal_lm."""
    knobs: dict[str, Knob] = {"kind": kind, "overrides": [*overrides], "context": context}
    return load_recipe(RecipeConfig(use="causal_lm", knobs=knobs))


@pytest.mark.parametrize("width", [5, 16])
def test_a_recipe_s_own_count_of_operations_is_what_its_model_does(width: int) -> None:
    recipe = load_recipe(RecipeConfig(use="digits", knobs={"width": width}))
    data = recipe.data("valid")
    assert isinstance(data, Table)
    assert recipe.flops_per_item() == count_flops(recipe, lambda n: (data.take(torch.arange(n)), n), 3, ANY)


def test_and_so_is_that_of_bytes_lm() -> None:
    """Which counts matrix products alone, as the formula 6N + 12 L d t."""
    recipe = load_recipe(RecipeConfig(use="bytes_lm", knobs={"width": 32, "depth": 2, "heads": 2, "context": 16}))
    assert recipe.flops_per_item() == count_flops(recipe, text(16), 2, ANY) / 16


@pytest.mark.parametrize(("context", "mflop"), [(1024, 854.4), (128, 755.3)])
def test_gpt2_small_is_as_its_parameters_say(context: int, mflop: float) -> None:
    """6N + 12 L d t a token (Chowdhery et al. 2022, 2204.02311, appendix B): N = 123.5 million weights of matrix products."""
    pytest.importorskip("transformers")
    recipe = language_model("gpt2", ["vocab_size=50257"], context)
    weights = 50257 * 768 + 12 * 12 * 768**2
    found = count_flops(recipe, text(context), 2, ANY) / context
    assert found == 6 * weights + 12 * 12 * 768 * context
    assert found / 1e6 == pytest.approx(mflop, abs=0.06)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mixtral"])
def test_so_are_others_of_transformers(kind: str) -> None:
    """Of a mixture of experts the weights that a token meets count: two experts in eight."""
    pytest.importorskip("transformers")
    recipe = language_model(kind, SMALL, 128)
    sizes = {n: p.numel() for n, p in recipe.model().named_parameters() if p.ndim > 1 and "embed" not in n}
    weights = sum(size * (0.25 if "expert" in name else 1) for name, size in sizes.items())
    expected = 6 * weights + 12 * 2 * 64 * 128
    assert count_flops(recipe, text(128), 2, ANY) / 128 == expected
    assert flops._for_real(recipe, text(128), 2, 0) / 128 == expected


def test_a_folder_s_weights_are_not_read_to_count(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 256, "bos_token_id": None, "eos_token_id": None}
    config = transformers.AutoConfig.for_model("gpt2", **sizes)
    config.save_pretrained(tmp_path)
    recipe = load_recipe(RecipeConfig(use="causal_lm", knobs={"folder": str(tmp_path), "tokenizer": "bytes", "context": 16}))
    assert count_flops(recipe, text(16), 2, ANY) / 16 == 6 * (256 * 16 + 12 * 16**2) + 12 * 16 * 16


@dataclass(frozen=True)
class Made(Recipe):
    """A recipe of any model, on rows of 8 numbers."""

    make: Callable[[], nn.Module] = nn.Identity
    shape: tuple[int, ...] = (8,)

    def model(self) -> nn.Module:
        """As it is made."""
        return self.make()

    def data(self, split: Split) -> Data:
        """Columns x and y."""
        generator = torch.Generator().manual_seed(0)
        return Table({"x": torch.randn(32, *self.shape, generator=generator), "y": torch.arange(32) % 2})

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Cross-entropy."""
        return cross_entropy(model(batch["x"]).flatten(1), batch["y"], reduction="sum"), len(batch["y"])

    def example(self, most: int) -> tuple[Any, int]:
        """Its first rows."""
        data = self.data("train")
        assert isinstance(data, Table)
        return data.take(torch.arange(most)), most


def test_resnet50_is_24_gflop_a_sample() -> None:
    """4.089 billion products forward; three times as many a step, less the gradient of the images."""
    transformers = pytest.importorskip("transformers")

    class Logits(nn.Module):
        """transformers' ResNet-50 for 1,000 classes."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))

        def forward(self, x: Tensor) -> Tensor:
            """Its logits."""
            logits: Tensor = self.inner(x).logits
            return logits

    recipe = Made(make=Logits, shape=(3, 224, 224))
    assert count_flops(recipe, recipe.example, 2, ANY) / 1e9 == pytest.approx(24.30, abs=0.01)


class OnInputs(nn.Module):
    """Code that looks at the batch: a mask, a length, a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Two layers where the input is as it always is."""
        x = self.one(x) if not (x > 100).any() else x
        kept = torch.arange(x.shape[1], device=x.device)
        if int(kept.max()) == 7 and bool((kept >= 0).all()):
            x = self.two(x)
        return x


class OnActivations(OnInputs):
    """Code that looks at what the model computes."""

    def forward(self, x: Tensor) -> Tensor:
        """Two layers, whatever comes of the first."""
        hidden: Tensor = self.one(x)
        if hidden.mean() < 100:
            hidden = self.two(hidden)
        mixed: Tensor = scaled_dot_product_attention(x[:, None, None], x[:, None, None], x[:, None, None])
        return hidden + mixed[:, 0, 0]


class OnNumbers(OnInputs):
    """Code that needs numbers to be made."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]


TWO = 2 * (2 * 64 + 3 * 64)
"""Two layers of 8 x 8; the gradient of the inputs is not needed."""


@pytest.mark.parametrize(("make", "expected"), [(OnInputs, TWO), (OnActivations, TWO + 4 * 8), (OnNumbers, TWO)])
def test_code_that_looks_at_numbers_is_counted(make: type[nn.Module], expected: int) -> None:
    recipe = Made(make=make)
    assert count_flops(recipe, recipe.example, 8, 200) == expected


def test_the_model_that_is_being_trained_is_left_as_it_is() -> None:
    """A recipe may give one model at every call."""
    for make in (OnInputs, OnActivations):
        live = make()
        live.register_buffer("seen", torch.zeros(()))
        before = {n: t.clone() for n, t in live.state_dict().items()}
        recipe = Made(make=lambda live=live: live)  # type: ignore[misc]
        assert count_flops(recipe, recipe.example, 8, 200) >= TWO
        assert all(torch.equal(t, before[n]) for n, t in live.state_dict().items())
        assert all(p.grad is None for p in live.parameters())


def test_a_count_is_no_training() -> None:
    """A recipe that notes which samples it trains on sees none in it."""
    seen: list[float] = []

    class Noting(Made):
        def loss(self, model: nn.Module, batch: Any) -> Sum:
            """As Made's; the samples of training are noted."""
            if model.training:
                seen.extend(batch["x"][:, 0].tolist())
            return super().loss(model, batch)

    for make in (OnInputs, OnActivations, lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))):
        recipe = Noting(make=make)
        assert count_flops(recipe, recipe.example, 8, 200) >= TWO
    assert seen == []


def test_the_random_numbers_of_training_are_left_as_they_are() -> None:
    recipe = Made(make=lambda: nn.Sequential(nn.Dropout(0.5), OnActivations()))
    state = torch.get_rng_state()
    count_flops(recipe, recipe.example, 8, 200)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_count_that_fails_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Made(make=OnActivations)
    with pytest.raises(CountError, match="depends on the values of its activations, and it is too large for a pass on the host"):
        count_flops(recipe, recipe.example, 8, ANY)
    monkeypatch.setattr(flops, "MOST_S", 0.0)
    with pytest.raises(CountError, match="takes more than 0 s on the host"):
        count_flops(recipe, recipe.example, 8, 200)


class Once(nn.Linear):
    """The first that is made trains; others fail."""

    made = 0

    def __init__(self) -> None:
        super().__init__(8, 2)
        Once.made += 1
        self.number = Once.made

    def forward(self, x: Tensor) -> Tensor:
        """Raises KeyError in all but the first."""
        if self.number > 1:
            raise KeyError("sizes\nand more")
        return super().forward(x)


def events_of(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a run of two windows tells."""
    tree = {
        "recipe": {"use": "digits"},
        "batch": {"reference": 8, "total": 8},
        "optim": {"lr": 0.01},
        "schedule": {"samples": 8 * 24},
        "scaling": {"warmup_epochs": 0},
        "watch": {"wandb": "off"},
    }
    monkeypatch.setattr("harness.training.loop.load_recipe", lambda config: Made(make=make))
    config = decode(tree)
    return list(train(config, plan(config, World(1, device="cpu")), cpu=True))


def test_a_run_tells_it_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(Once, monkeypatch)
    said = [e.message for e in events if isinstance(e, Noticed) and e.code == "flops_unknown"]
    assert len(said) == 1
    assert "(KeyError: 'sizes" in said[0]
    assert "\n" not in said[0]
    assert said[0].endswith("give the recipe flops_per_item()")
    assert {e.metrics["throughput/tflops_per_device"] for e in events if isinstance(e, Windowed)} == {None}


def test_the_uniform_loss_is_asked_for_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may read its model's configuration for it."""
    asked = []
    monkeypatch.setattr(Made, "uniform_loss", lambda recipe: asked.append(1))
    assert sum(isinstance(e, Windowed) for e in events_of(OnActivations, monkeypatch)) > 1
    assert asked == [1]


def test_a_run_whose_operations_are_counted_tells_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(OnActivations, monkeypatch)
    assert not [e for e in events if isinstance(e, Noticed) and e.code == "flops_unknown"]
    last = [e.metrics for e in events if isinstance(e, Windowed)][-1]
    rate, tflops = last["throughput/samples_per_s"], last["throughput/tflops_per_device"]
    assert rate is not None
    assert tflops is not None
    assert math.isclose(tflops, rate * (TWO + 32) / 1e12)
