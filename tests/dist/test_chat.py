"""Fine-tunes of a small Llama on conversations, whole and by LoRA: a hand loop's losses on any layout, and what others read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.checkpoint import reader
from harness.config.loader import load
from harness.data.feed import Table
from harness.data.sample_order import Order, derive
from harness.data.seeding import MODEL, seed_all
from harness.recipes.base import load_recipe
from harness.recipes.text import MASKED
from harness.tools.export import export
from tests.support.processes import run_ranks
from tests.support.tiny_llama import write_conversations, write_llama

pytest.importorskip("transformers")
pytest.importorskip("peft")

STEPS, BATCH, LR = 10, 8, 3e-3
LORA = {"lora_r": 2, "lora_alpha": 8.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and conversations."""
    folder = tmp_path_factory.mktemp("chat")
    write_llama(folder / "llama")
    write_conversations(folder / "chat.jsonl")
    return folder


def run_file(place: Path, name: str, knobs: dict[str, Any], backend: str = "ddp") -> Path:
    """A run file of ten steps of eight conversations."""
    recipe = {"use": "chat", "folder": str(place / "llama"), "files": str(place / "chat.jsonl"), "context": 96}
    tree = {
        "recipe": recipe | knobs,
        "batch": {"reference": BATCH, "total": BATCH},
        "optim": {"name": "adamw", "lr": LR},
        "schedule": {"samples": STEPS * BATCH},
        "backend": {"name": backend},
        "watch": {"wandb": "off"},
        "run": {"dir": str(place / name)},
    }
    (place / f"{name}.yaml").write_text(json.dumps(tree))
    return place / f"{name}.yaml"


def trained(place: Path, name: str, knobs: dict[str, Any], ranks: int, backend: str = "ddp") -> list[float]:
    """The losses of a run's steps."""
    run_ranks(ranks, ["harness", str(run_file(place, name, knobs, backend)), "--no-plan"], place)
    lines = [json.loads(line) for line in (place / name / "events.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if line["event"] == "step"]


def by_hand(place: Path, *, lora: bool) -> list[float]:
    """The same losses by transformers, peft and torch alone, but for the rows and their order."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    data = load_recipe(load(run_file(place, "rows", {})).recipe).data("train")
    assert isinstance(data, Table)
    order = Order(len(data), derive(0, 3))
    seed_all(derive(0, MODEL))
    model: nn.Module = AutoModelForCausalLM.from_pretrained(place / "llama", dtype=torch.float32)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8.0, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        rows = data.take(torch.from_numpy(order.take(step * BATCH, (step + 1) * BATCH)))
        labels = rows["tokens"].long().masked_fill(rows["learn"] == 0, MASKED)
        loss = model(input_ids=rows["tokens"].long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("knobs", [{}, LORA], ids=["full", "lora"])
def test_losses_are_those_of_a_hand_loop(place: Path, knobs: dict[str, Any], ranks: int) -> None:
    expected = by_hand(place, lora=bool(knobs))
    assert trained(place, f"{'lora' if knobs else 'full'}{ranks}", knobs, ranks) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.01


@pytest.mark.parametrize("backend", ["fsdp", "zero2", "zero3"])
def test_adapters_train_alike_where_the_base_lies_in_shards(place: Path, backend: str) -> None:
    assert trained(place, backend, LORA, 2, backend) == pytest.approx(by_hand(place, lora=True), rel=1e-5)


def test_adapters_load_in_peft_and_merged_weights_say_the_same(place: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (place / "lora1").is_dir():
        trained(place, "lora1", LORA, 1)
    run, config = place / "lora1", load(place / "lora1" / "run.yaml")
    export(config, run, place / "adapter", adapter=True)
    export(config, run, place / "merged")
    found, _ = reader.newest(str(run / "checkpoints"))
    assert found is not None
    held = [name for name in found.tensors if name.startswith("model/")]
    assert held
    assert all("lora_" in name for name in held), "the base is not in the checkpoint"
    assert any("q_proj.base_layer.weight" in name for name in found.about["frozen"]), "but its digests are"
    ids = torch.arange(5, 60).reshape(1, -1)
    base = AutoModelForCausalLM.from_pretrained(place / "llama").eval()
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(place / "adapter")).eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(place / "merged").eval()(ids).logits
    assert not torch.allclose(before, adapted, atol=1e-4)
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(place / "merged").chat_template
    assert json.loads((place / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(place / "llama")
