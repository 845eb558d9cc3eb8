"""Documents packed into rows: none is lost, little is padding, and the loss is that of the documents alone."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.config.schema import RecipeConfig
from harness.data.columns import Columns
from harness.data.packing import UNCOUNTED, Documents, PackedRows, best_fit
from harness.recipes.base import Recipe, Split, load_recipe
from harness.recipes.document_masks import block_diagonal, document_logits, sequence_ends
from harness.recipes.text import packed_loss
from tests.support.tiny_llama import write_conversations, write_llama

CONTEXT = 24
SPLITS: tuple[Split, ...] = ("train", "valid")
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 2, "bos_token_id": None, "eos_token_id": None},
    "mistral": SMALL | {"sliding_window": 4},
}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200))
def test_rows_hold_every_document_and_few_have_room(lengths: list[int]) -> None:
    sizes = np.array(lengths, np.int64)
    rows = best_fit(sizes, 30)
    filled = np.bincount(rows, weights=sizes)
    assert filled.max() <= 30
    assert filled.min() > 0, "no row is empty"
    assert (np.sort(filled)[:-1] * 2 >= 30).all() or np.sort(filled)[0] + np.sort(filled)[1] > 30, "two would fit into one"
    first = [rows.tolist().index(row) for row in range(len(filled))]
    assert first == sorted(first), "rows are numbered by their first document"
    assert rows.tolist() == best_fit(sizes, 30).tolist()
    assert len(filled) <= max(1, np.ceil(11 / 9 * sizes.sum() / 30 + 6 / 9) + (sizes * 2 > 30).sum())


def documents(seed: int = 0, number: int = 40) -> Documents:
    """Of unequal length, each with a part that is not learnt."""
    random = np.random.default_rng(seed)
    rows = []
    for line in range(number):
        length = int(random.integers(2, CONTEXT + 2))
        rows.append((line + 1, random.integers(1, 50, length).tolist(), (random.random(length) < 0.7).tolist()))
    return Documents.of(rows)


def test_every_prediction_is_in_the_rows_once_with_its_place_in_its_document() -> None:
    given_ = documents()
    rows = PackedRows(given_, CONTEXT)
    batch = rows.take(torch.arange(len(rows)))
    found = []
    for tokens, target, position, length, number in zip(*(batch[n].tolist() for n in batch), range(len(rows)), strict=True):
        begins = [i for i in range(length) if position[i] == 0] + [length]
        lines = [int(n) for n in rows.source(number).removeprefix("line").removeprefix("s ").split(",")]
        assert len(lines) == len(begins) - 1
        for line, a, b in zip(lines, begins, begins[1:], strict=False):
            assert position[a:b] == list(range(b - a))
            found.append((line, tokens[a:b], target[a:b]))
        assert target[length:] == [UNCOUNTED] * (CONTEXT - length)
        assert position[length:] == list(range(CONTEXT - length)), "padding is a document of its own"
    ends = np.cumsum(given_.lengths)
    expected = []
    for line, end, length in zip(given_.lines, ends, given_.lengths, strict=True):
        ids, learn = given_.ids[end - length : end].tolist(), given_.learn[end - length : end]
        expected.append((int(line), ids[:-1], [t if yes else UNCOUNTED for t, yes in zip(ids[1:], learn[1:], strict=True)]))
    assert sorted(found) == sorted(expected)
    assert rows.take(torch.tensor([3, 1]))["tokens"].tolist() == batch["tokens"][[3, 1]].tolist()


def test_it_is_told_what_packing_has_won() -> None:
    rows = PackedRows(Documents.of([(1, list(range(9)), None), (2, list(range(9)), None), (3, list(range(9)), None)]), 16)
    assert rows.summary() == "3 documents are packed into 2 rows of 16 tokens: 25 % padding, 50 % if each had its own row"
    assert rows.source(0) == "lines 1, 2"
    assert PackedRows(Documents.of([(1, [1, 2], None)]), 16).summary() == ""


def model_of(kind: str, implementation: str) -> nn.Module:
    """A small one, in float64."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind], vocab_size=50)
    flash = "flash" in implementation
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if flash else implementation)
    if flash:
        transformers.AttentionInterface.register(implementation, varlen_attention)
        model.config._attn_implementation = implementation
    double: nn.Module = model.double()
    return double


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **given_: Any
) -> tuple[Tensor, None]:
    """What flash attention computes of one row of sequences, by torch: each between its neighbours in cu_seq_lens."""
    assert mask is None
    assert query.shape[0] == 1
    ends = given_["cu_seq_lens_q"].tolist()
    parts = [(a, b) for a, b in pairwise(ends) if a < b]
    assert max(b - a for a, b in parts) <= given_["max_length_q"]
    attend = nn.functional.scaled_dot_product_attention
    cut = [
        attend(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling, enable_gqa=True) for a, b in parts
    ]
    return torch.cat(cut, 2).transpose(1, 2), None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_varlen_by_torch"])
def test_the_loss_and_its_gradients_are_those_of_the_documents_alone(kind: str, implementation: str) -> None:
    """With masks of ours, with those that transformers makes of position ids (windows), and as sequences of variable length."""
    if kind == "mistral" and "flash" in implementation:
        pytest.skip("the attention by torch has no windows")
    model = model_of(kind, implementation)
    alone_model = model if "flash" not in implementation else model_of(kind, "sdpa")
    packed, alone = (PackedRows(documents(), CONTEXT, pack=pack) for pack in (True, False))
    assert len(packed) < 0.8 * len(alone)
    model.eval()
    alone_model.eval()
    with torch.no_grad():
        packed_loss(model, packed.take(torch.arange(2)))  # it is looked at
    total, count = packed_loss(model, packed.take(torch.arange(len(packed))))
    total.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone_total, alone_count = torch.zeros((), dtype=torch.float64), 0
    for number in range(len(alone)):
        row = alone.take(torch.tensor([number]))
        size = int(row["length"])
        target = row["target"][:, :size].long()
        logits = alone_model(input_ids=row["tokens"][:, :size].long(), use_cache=False).logits.float()
        alone_total += nn.functional.cross_entropy(logits[0], target[0], reduction="sum")
        alone_count += int((target != UNCOUNTED).sum())
    assert count == alone_count
    assert total.item() == pytest.approx(alone_total.item(), rel=1e-6)
    alone_total.backward()  # type: ignore[no-untyped-call]
    for ours, parameter in zip(grads, alone_model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-6)


def test_flex_attention_gives_the_logits_of_masks_and_is_not_trained_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without compilation, which takes minutes here; torch has no backward of it for the CPU."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr("torch._dynamo.config.disable", True)
    position = torch.cat([torch.arange(10), torch.arange(3), torch.arange(11)])[None].expand(2, -1)
    tokens = torch.randint(0, 50, position.shape, generator=torch.Generator().manual_seed(0))
    flexible, masked = model_of("llama", "flex_attention").float().eval(), model_of("llama", "sdpa").float().eval()
    with torch.no_grad():
        with pytest.raises(UserError, match=r"recipe.overrides: .*flex_attention, for which torch has no backward on the CPU"):
            document_logits(flexible, tokens, position)
        flexible = model_of("llama", "flex_attention").float().eval().requires_grad_(False)
        torch.testing.assert_close(document_logits(flexible, tokens, position), document_logits(masked, tokens, position))


def test_an_attention_that_gives_documents_other_logits_than_alone_is_refused() -> None:
    """One that loses the last document's first place, and lets no document see another."""
    model = model_of("llama", "flash_that_forgets").eval()
    tokens = torch.arange(20)[None]

    def forgetful(*given_: Any, **more: Any) -> Any:
        out, weights = varlen_attention(*given_, **more)
        ends = more["cu_seq_lens_q"].tolist()
        out[:, ends[-2]] *= float(len(ends) == 2)
        return out, weights

    pytest.importorskip("transformers").AttentionInterface.register("flash_that_forgets", forgetful)
    with torch.no_grad(), pytest.raises(UserError, match="LlamaForCausalLM gives a document other logits in a row of several"):
        document_logits(model, tokens, tokens % 5)


def test_masks_and_ends_say_which_places_are_of_one_document() -> None:
    position = torch.tensor([[0, 1, 0, 0, 1], [3, 0, 1, 2, 0]])
    seen = [[i.nonzero()[:, 0].tolist() for i in row[0]] for row in block_diagonal(position)]
    assert seen[0] == [[0], [0, 1], [2], [3], [3, 4]]
    assert seen[1] == [[0], [1], [1, 2], [1, 2, 3], [4]]
    assert sequence_ends(position).tolist() == [0, 2, 3, 5, 6, 9, 10]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("bloom", {"n_layer": 2, "hidden_size": 16, "n_head": 2}, "BloomForCausalLM takes no position ids"),
        ("jamba", SMALL | {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2}, "JambaForCausalLM lets documents in"),
    ],
)
def test_a_model_that_cannot_keep_documents_apart_is_refused(kind: str, settings: dict[str, Any], said: str) -> None:
    """By its signature, or, where a state runs on from one document to the next, by what it does."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **settings, vocab_size=50)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(20)[None] % 50
    with torch.no_grad(), pytest.raises(UserError, match=f"recipe.use: {said}"):
        document_logits(model, tokens, tokens % 5)


def recipe_of(use: str, folder: Path, **knobs: Any) -> Recipe:
    """On the small Llama."""
    given_ = {"folder": str(folder / "llama"), "context": 96, **knobs}
    return load_recipe(RecipeConfig(use=use, knobs=given_))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, conversations, and documents."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("packing")
    write_llama(folder / "llama")
    write_conversations(folder / "chat.jsonl")
    texts = [{"text": "what is the sum " * (1 + n * n % 13)} for n in range(41)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return folder


@pytest.mark.parametrize("use", ["chat", "causal_lm"])
def test_a_recipe_s_loss_over_all_data_is_the_same_packed(use: str, place: Path) -> None:
    files = {"files": str(place / ("chat.jsonl" if use == "chat" else "texts.jsonl"))}
    plain = recipe_of(use, place, **files, **({} if use == "chat" else {"field": "text"}))
    packed = recipe_of(use, place, **files, packing="best_fit")
    model = plain.model().eval()
    for split in SPLITS:
        found = []
        for recipe in (plain, packed):
            data = recipe.data(split)
            assert isinstance(data, Columns)
            with torch.no_grad():
                total, count = recipe.loss(model, data.take(torch.arange(len(data))))
            found.append((len(data), total.item(), int(count)))
            row = {name: column[0] for name, column in data.take(torch.tensor([0])).items()}
        assert found[1][0] < 0.7 * found[0][0] or split == "valid"
        assert found[1][2] == found[0][2]
        assert found[1][1] == pytest.approx(found[0][1], rel=1e-6)
    assert "what is the sum" in packed.preview(row)


def test_long_documents_are_cut_and_each_ends_with_the_end_of_text(place: Path) -> None:
    recipe = recipe_of("causal_lm", place, files=str(place / "texts.jsonl"), field="text", context=40)
    data = recipe.data("train")
    assert isinstance(data, PackedRows)
    rows = data.take(torch.arange(len(data)))
    counted = int((rows["target"] != UNCOUNTED).sum())
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(place / "llama")
    texts = [json.loads(line)["text"] for line in (place / "texts.jsonl").read_text().splitlines()]
    kept = [text for number, text in enumerate(texts) if number % 20]
    lengths = [len(words(text)["input_ids"]) for text in kept]
    assert max(lengths) > 41
    assert counted == sum(lengths), "each is predicted once, and the end too"
    assert int((rows["target"] == words.eos_token_id).sum()) == len(kept)


def test_tables_hold_the_same_documents_as_lines(place: Path, tmp_path: Path) -> None:
    """As text, as ids, and as conversations; in Parquet and as save_to_disk() writes them."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(place / "llama")
    texts = [json.loads(line)["text"] for line in (place / "texts.jsonl").read_text().splitlines()]
    ids = [[*words(text)["input_ids"], words.eos_token_id] for text in texts]
    talks = [json.loads(line) for line in (place / "chat.jsonl").read_text().splitlines()]
    rows = [{name: talk.get(name) for name in ("messages", "prompt", "completion")} for talk in talks]
    table, chats = datasets.Dataset.from_dict({"text": texts, "ids": ids}), datasets.Dataset.from_list(rows)
    cases: list[tuple[str, Any, str, list[dict[str, str]]]] = [
        ("causal_lm", table, "texts.jsonl", [{"field": "text"}, {"field": "ids"}]),
        ("chat", chats, "chat.jsonl", [{}]),
    ]
    for use, data, lines, fields in cases:
        data.save_to_disk(tmp_path / use)
        data.to_parquet(tmp_path / f"{use}.parquet", batch_size=10)
        known = columns_of(recipe_of(use, place, files=str(place / lines), packing="best_fit"))
        for files in (tmp_path / use, tmp_path / f"{use}.parquet"):
            for field in fields:
                assert columns_of(recipe_of(use, place, files=str(files), packing="best_fit", **field)) == known
    datasets.Dataset.from_dict({"label": [0.5]}).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(UserError, match="row 0 has neither a text nor token ids in 'label'"):
        recipe_of("causal_lm", place, files=str(tmp_path / "odd.parquet"), field="label").data("train")


def columns_of(recipe: Recipe) -> list[Any]:
    """All columns of both splits."""
    found: list[Any] = []
    for split in SPLITS:
        data = recipe.data(split)
        assert isinstance(data, PackedRows)
        found.append({name: column.tolist() for name, column in data.take(torch.arange(len(data))).items()})
    return found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 2 is not JSON"),
        ('{"words": "a"}', "line 2 has no text in 'text'; fix it, or say where the text is: recipe.field"),
    ],
)
def test_a_line_that_is_no_document_is_named(text: str, said: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "what is"}\n' + text + "\n")
    with pytest.raises(UserError, match=f"recipe.files: .*bad.jsonl {said}"):
        recipe_of("causal_lm", place, files=str(tmp_path / "bad.jsonl"), packing="best_fit").data("train")


def test_lines_are_documents_whatever_else_is_said(place: Path) -> None:
    """And never their JSON as text."""
    files = str(place / "texts.jsonl")
    assert columns_of(recipe_of("causal_lm", place, files=files)) == columns_of(
        recipe_of("causal_lm", place, files=files, field="text")
    )


def test_text_that_is_left_out_is_told(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what is the sum " * 100)
    files = [str(tmp_path / "a.txt"), str(place / "texts.jsonl")]
    for name in files:
        whole, part = (recipe_of("causal_lm", place, files=name, max_bytes=most).data("train") for most in (4_000_000, 1000))
        assert isinstance(whole, Columns)
        assert isinstance(part, Columns)
        assert whole.summary() == ""
        assert part.summary() == "the first 1,000 bytes of text are read, and there are more: see recipe.max_bytes"
        assert len(part) < len(whole)


def test_files_of_another_kind_are_answered_by_what_to_write(place: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("what is the sum")
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    for files, said in {
        "texts": "holds no file that ends in '.py'; set recipe.suffix: .txt",
        "saved": f"{tmp_path}/saved holds the splits train, test; name one of them, as {tmp_path}/saved/train",
        "train.bin": "holds token ids, not text; give it to the recipe tokens, as recipe.data",
    }.items():
        with pytest.raises(UserError, match=f"^recipe.files: .*{said}"):
            recipe_of("causal_lm", place, files=str(tmp_path / files)).data("train")
