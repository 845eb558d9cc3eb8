"""The recipe chat: what is learnt of a conversation, and what is refused in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.errors import UserError
from harness.config.schema import RecipeConfig
from harness.data.feed import Table
from harness.recipes.base import Recipe, load_recipe
from harness.recipes.chat_rows import read_rows
from tests.support.tiny_llama import write_conversations, write_llama

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and its tokenizer."""
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def words(llama: Path) -> Any:
    """Its tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama)


def chat(llama: Path, file: Path, **knobs: Any) -> Recipe:
    """The recipe."""
    return load_recipe(RecipeConfig(use="chat", knobs={"folder": str(llama), "files": str(file), "context": 96, **knobs}))


def learnt(words: Any, tmp_path: Path, line: dict[str, Any]) -> tuple[str, str]:
    """(a line as the model sees it, what of it is learnt)."""
    (tmp_path / "one.jsonl").write_text(json.dumps(line))
    (row,) = read_rows(str(tmp_path / "one.jsonl"), words)
    return words.decode(row.ids), words.decode([i for i, learn in zip(row.ids, row.learn, strict=True) if learn])


def test_what_the_assistant_says_is_learnt_to_its_end_and_nothing_else(words: Any, tmp_path: Path) -> None:
    turns = [("system", "be short"), ("user", "hi"), ("assistant", "hello"), ("user", "more"), ("assistant", "no")]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole, part = learnt(words, tmp_path, {"messages": messages})
    assert whole == "<system>be short<end><user>hi<end><assistant>hello<end><user>more<end><assistant>no<end>"
    assert part == "hello<end>no<end>"
    assert learnt(words, tmp_path, {"prompt": messages[:4], "completion": messages[4:]}) == (whole, "no<end>")
    assert learnt(words, tmp_path, {"prompt": "two and two are", "completion": " four"}) == (
        "two and two are four<end>",
        " four<end>",
    )


def test_the_loss_counts_the_tokens_that_are_learnt(llama: Path, tmp_path: Path) -> None:
    recipe = chat(llama, write_conversations(tmp_path / "chat.jsonl"))
    train, valid = recipe.data("train"), recipe.data("valid")
    assert isinstance(train, Table)
    assert isinstance(valid, Table)
    assert (len(train), len(valid)) == (40, 2)
    batch = train.take(torch.arange(5))
    model = recipe.model()
    total, count = recipe.loss(model, batch)
    assert count == batch["learn"].sum()
    longer = {name: torch.nn.functional.pad(column, (0, 9)) for name, column in batch.items()}
    assert recipe.loss(model, longer)[0].item() == pytest.approx(total.item(), rel=1e-6), "padding changes nothing"
    assert total.item() / int(count) == pytest.approx(math.log(290), rel=0.1)


def test_a_conversation_that_is_too_long_is_refused_cut_or_left_out(llama: Path, tmp_path: Path) -> None:
    file = write_conversations(tmp_path / "chat.jsonl")
    with pytest.raises(UserError, match=r"line 4 has 33 tokens, and recipe\.context 30 takes 31; set recipe\.context: 32 or more"):
        chat(llama, file, context=30).data("train")
    cut, dropped = (chat(llama, file, context=31, too_long=how).data("train") for how in ("cut", "drop"))
    assert isinstance(cut, Table)
    assert isinstance(dropped, Table)
    assert len(dropped) < len(cut) <= 40
    assert cut.columns["learn"][:, 1:].any(1).all()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "line 2 is no JSON"),
        ('{"text": "a"}', "line 2 has neither messages nor a prompt with its completion"),
        ('{"messages": [{"role": "user"}]}', "line 2 has a message without a role and a text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2 has nothing to learn"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(llama: Path, tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' + text + "\n")
    with pytest.raises(UserError, match=match):
        chat(llama, tmp_path / "chat.jsonl").data("train")


def test_a_template_that_hides_where_an_answer_begins_is_refused(llama: Path, words: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    odd = AutoTokenizer.from_pretrained(llama)
    odd.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match="renders the messages before number 2 differently"):
        learnt(odd, tmp_path, {"messages": messages})


def test_a_model_of_bytes_and_a_missing_file_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.tokenizer: is bytes"):
        chat(llama, tmp_path / "none.jsonl", tokenizer="bytes").data("train")
    with pytest.raises(UserError, match=r"recipe\.files: .* cannot be read"):
        chat(llama, tmp_path / "none.jsonl").data("train")


def test_lora_trains_the_adapters_alone_on_the_modules_that_are_named(llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe = chat(llama, tmp_path / "none.jsonl", lora_r=2, lora_targets=["q_proj", "v_proj"])
    trained = [name for name, p in recipe.model().named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    assert len(recipe.blocks(recipe.model())) == 2
    with pytest.raises(UserError, match=r"recipe\.lora_targets: is \['nothing'\], which match no module"):
        chat(llama, tmp_path / "none.jsonl", lora_r=2, lora_targets=["nothing"]).model()


def test_without_peft_it_is_one_line(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"recipe\.lora_r: needs peft .*; pip install 'widebatch\[lora\]'"):
        chat(llama, tmp_path / "none.jsonl", lora_r=2).model()
