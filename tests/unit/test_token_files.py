"""Files of tokens: every format gives the same rows, nothing is read that no batch needs, and what is wrong is one line."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import RecipeConfig
from harness.data.token_files import TokenFiles
from harness.data.training_order import training_order
from harness.recipes.base import load_recipe
from tests.support.processes import ROOT, environ

CONTEXT = 16
IDS = np.random.default_rng(0).integers(1, 500, 1001)


def megatron(path: Path, ids: Any, *, code: int = 8, dtype: str = "uint16", rows: int = 7, modes: bool = False) -> Path:
    """Megatron-LM's pair of files, the ids in `rows` documents."""
    ids.astype(dtype).tofile(path)
    lengths = np.diff(np.linspace(0, len(ids), rows + 1).astype(int)).astype(np.int32)
    starts = (np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize).astype(np.int64)
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, rows, rows + 1)
    ends = np.arange(rows + 1, dtype=np.int64).tobytes()
    path.with_suffix(".idx").write_bytes(head + lengths.tobytes() + starts.tobytes() + ends + b"\0" * (rows if modes else 0))
    return path


def llm_c(path: Path, ids: Any, magic: tuple[int, int] = (20240520, 1), dtype: str = "uint16") -> Path:
    """llm.c's file: 256 int32, then the ids."""
    head = np.zeros(256, np.int32)
    head[:3] = [*magic, len(ids)]
    path.write_bytes(head.tobytes() + ids.astype(dtype).tobytes())
    return path


def raw(path: Path, ids: Any, dtype: str = "uint16") -> Path:
    """The ids alone."""
    ids.astype(dtype).tofile(path)
    return path


def numpy(path: Path, ids: Any, dtype: str) -> Path:
    """A .npy."""
    np.save(path, ids.astype(dtype))
    return path


FORMATS: dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]] = {
    "raw": lambda folder: (raw(folder / "a.bin", IDS), {}),
    "raw32": lambda folder: (raw(folder / "a.bin", IDS, "uint32"), {"dtype": "uint32"}),
    "llm.c": lambda folder: (llm_c(folder / "a.bin", IDS), {}),
    "llm.c 32": lambda folder: (llm_c(folder / "a.bin", IDS, (20240801, 7), "uint32"), {}),
    "megatron": lambda folder: (megatron(folder / "a.bin", IDS), {}),
    "megatron int32": lambda folder: (megatron(folder / "a.bin", IDS, code=4, dtype="int32", modes=True), {}),
    "npy": lambda folder: (numpy(folder / "a.npy", IDS, "uint16"), {}),
    "npy int64": lambda folder: (numpy(folder / "a.npy", IDS, "int64"), {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_every_token_once_as_a_target(name: str, tmp_path: Path) -> None:
    path, options = FORMATS[name](tmp_path)
    data = TokenFiles(str(path), CONTEXT, vocabulary=500, **options)
    assert len(data) == 63
    rows = data.take(torch.arange(len(data)))
    targets = [row[1:length].tolist() for row, length in zip(rows["tokens"], rows["length"], strict=True)]
    assert [t for row in targets for t in row] == IDS[1:].tolist()
    inputs = [row[: length - 1].tolist() for row, length in zip(rows["tokens"], rows["length"], strict=True)]
    assert [t for row in inputs for t in row] == IDS[:-1].tolist()
    assert rows["length"].tolist() == [CONTEXT + 1] * 62 + [9]


def test_rows_of_several_files_are_found_by_number_in_any_order(tmp_path: Path) -> None:
    """Also of one that is shorter than a row; rows do not go from one file into the next."""
    parts = [IDS[:100], IDS[100:110], IDS[:1], IDS[110:300]]
    for number, part in enumerate(parts):
        raw(tmp_path / f"{number}.bin", part)
    data = TokenFiles(str(tmp_path), CONTEXT)
    expected = [part[start : start + CONTEXT + 1].tolist() for part in parts for start in range(0, len(part) - 1, CONTEXT)]
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    rows = data.take(order)
    found = [row[:length].tolist() for row, length in zip(rows["tokens"], rows["length"], strict=True)]
    assert found == [expected[i] for i in order.tolist()]
    assert TokenFiles([str(tmp_path / "[012].bin"), str(tmp_path / "3.bin")], CONTEXT).paths == data.paths


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_a_stride_says_where_rows_begin_and_all_tokens_are_predicted(stride: int, tmp_path: Path) -> None:
    data = TokenFiles(str(raw(tmp_path / "a.bin", IDS[:100])), CONTEXT, stride=stride)
    rows = data.take(torch.arange(len(data)))
    for number, (row, length) in enumerate(zip(rows["tokens"].tolist(), rows["length"].tolist(), strict=True)):
        assert row[:length] == IDS[number * stride : min(number * stride + CONTEXT + 1, 100)].tolist()
    assert number * stride + length == 100, "the last row ends with the file"
    assert (rows["length"][:-1] == CONTEXT + 1).all()
    with pytest.raises(UserError, match=r"recipe.stride: is 17, more than the context of 16"):
        TokenFiles(str(tmp_path), CONTEXT, stride=17)


ENDS = [0, 3, 4, 20, 36, 60, 61, 100]
"""Where documents of 100 tokens begin, and the end: also where a row does, and some of one token."""


def by_eos(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Documents that end with the id 7, and no other 7."""
    ids = np.where(IDS[:100] == 7, 8, IDS[:100])
    ids[np.array(ENDS[1:]) - 1] = 7
    return raw(folder / "a.bin", ids), {"eos": 7}


def by_index(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Megatron-LM's, in which a document has several sequences."""
    path = megatron(folder / "a.bin", IDS[:100], rows=100)
    head, ends = path.with_suffix(".idx").read_bytes()[: 34 + 12 * 100], np.array(ENDS, np.int64)
    path.with_suffix(".idx").write_bytes(head[:26] + struct.pack("<Q", len(ends)) + head[34:] + ends.tobytes())
    return path, {}


@pytest.mark.parametrize("made", [by_eos, by_index])
@pytest.mark.parametrize("stride", [5, 16])
def test_masked_documents_begin_where_the_id_or_the_index_says(
    made: Callable[[Path], tuple[Path, dict[str, Any]]], stride: int, tmp_path: Path
) -> None:
    path, given = made(tmp_path)
    data = TokenFiles(str(path), CONTEXT, stride=stride, documents="masked", vocabulary=500, **given)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    rows = data.take(order)
    for number, position, length in zip(*(part.tolist() for part in (order, rows["position"], rows["length"])), strict=True):
        start = number * stride
        begun = [max([end for end in ENDS if end <= start + i]) for i in range(length)]
        assert position[:length] == [start + i - max(begin, start) for i, begin in enumerate(begun)]
    joined = TokenFiles(str(path), CONTEXT, stride=stride)
    assert joined.take(order)["tokens"].tolist() == rows["tokens"].tolist()
    assert joined.fingerprint() != data.fingerprint(), "it is another task"


def test_the_loss_of_masked_documents_is_that_of_each_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path, _ = by_eos(tmp_path)
    overrides = ["n_layer=2", "n_embd=16", "n_head=2", "n_positions=16", "vocab_size=500"]
    knobs: dict[str, Any] = {
        "kind": "gpt2",
        "overrides": overrides,
        "data": str(path),
        "context": CONTEXT,
        "documents": "masked",
        "eos": 7,
    }
    recipe = load_recipe(RecipeConfig(use="tokens", knobs=knobs))
    data, model = recipe.data("train"), recipe.model().eval()
    assert isinstance(data, TokenFiles)
    with torch.no_grad():
        total, count = recipe.loss(model, data.take(torch.arange(len(data))))
    ids, alone, counted = np.fromfile(path, np.uint16).astype(np.int64), 0.0, 0
    for a, b in pairwise(ENDS):
        for start in range(a // CONTEXT * CONTEXT, b, CONTEXT):  # as rows cut it
            part = torch.from_numpy(ids[max(start, a) : min(start + CONTEXT + 1, b)])[None]
            if part.shape[1] > 1:
                logits = model(input_ids=part[:, :-1], use_cache=False).logits
                alone += torch.nn.functional.cross_entropy(logits[0], part[0, 1:], reduction="sum").item()
                counted += part.shape[1] - 1
    assert int(count) == counted == 100 - (len(ENDS) - 1)
    assert total.item() == pytest.approx(alone, rel=1e-6)


def test_documents_whose_ends_nothing_says_are_refused(tmp_path: Path) -> None:
    path, _ = by_eos(tmp_path)
    for given, said in (
        ({}, r"recipe.documents: is masked, and nothing says where the documents of .*a.bin end; give recipe.eos"),
        ({"eos": 500}, "recipe.eos: is 500, and the vocabulary has 500: no document would end"),
    ):
        with pytest.raises(UserError, match=said):
            TokenFiles(str(path), CONTEXT, documents="masked", vocabulary=500, **given)  # type: ignore[arg-type]
    path, _ = by_index(tmp_path)
    index = path.with_suffix(".idx").read_bytes()
    path.with_suffix(".idx").write_bytes(index[:-24] + struct.pack("<q", 4000) + index[-16:])
    data = TokenFiles(str(path), CONTEXT, documents="masked")
    with pytest.raises(UserError, match=r"recipe.documents: .*a.idx has document bounds out of order: it is damaged"):
        data.take(torch.arange(len(data)))


def write_index(folder: Path, files: dict[str, int], digest: str = "d", dtype: str = "uint16") -> None:
    """A tokens.json."""
    tree = {"dtype": dtype, "vocabulary": 500, "tokens": sum(files.values()), "digest": digest, "files": files}
    (folder / "tokens.json").write_text(json.dumps(tree))


def test_the_fingerprint_is_of_tokens_json_or_of_sizes_and_blocks(tmp_path: Path) -> None:
    big = np.random.default_rng(1).integers(1, 500, 200_000)
    path = raw(tmp_path / "a.bin", big)
    first = TokenFiles(str(path), CONTEXT).fingerprint()
    assert TokenFiles(str(path), CONTEXT).fingerprint() == first
    assert TokenFiles(str(path), CONTEXT, stride=8).fingerprint() != first
    moved = tmp_path / "there"
    moved.mkdir()
    assert TokenFiles(str(raw(moved / "b.bin", big)), CONTEXT).fingerprint() == first, "data may move"
    big[0] += 1
    assert TokenFiles(str(raw(path, big)), CONTEXT).fingerprint() != first
    write_index(tmp_path, {"a.bin": len(big)})
    told = TokenFiles(str(path), CONTEXT).fingerprint()
    assert told != first
    write_index(tmp_path, {"a.bin": len(big)}, digest="e")
    assert TokenFiles(str(path), CONTEXT).fingerprint() != told


def cut(path: Path, least: int = 1) -> Path:
    """A file without its last bytes."""
    path.write_bytes(path.read_bytes()[:-least])
    return path


def no_index(folder: Path) -> Path:
    """A raw file beside an .idx that is none."""
    (folder / "a.idx").write_bytes(b"something else entirely, of some length")
    return raw(folder / "a.bin", IDS)


def foreign_index(folder: Path) -> Path:
    """The index of another file."""
    megatron(folder / "b.bin", IDS[:800])
    (folder / "b.idx").rename(folder / "a.idx")
    return raw(folder / "a.bin", IDS)


def contradicted(folder: Path) -> Path:
    """tokens.json says another count."""
    write_index(folder, {"a.bin": 900})
    return raw(folder / "a.bin", IDS)


def broken_json(folder: Path) -> Path:
    """tokens.json is cut off."""
    (folder / "tokens.json").write_text('{"dtype": "uint16"')
    return raw(folder / "a.bin", IDS)


def empty(folder: Path) -> Path:
    """No bytes."""
    (folder / "a.bin").touch()
    return folder / "a.bin"


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "odd": (lambda f: cut(raw(f / "a.bin", IDS)), "has 2,001 bytes of tokens, not a multiple of 2: cut off, or not uint16"),
    "header": (lambda f: cut(llm_c(f / "a.bin", IDS), 2), "holds 1,000 tokens, and its header says 1,001"),
    "megatron": (lambda f: cut(megatron(f / "a.bin", IDS), 2), "has 2,000 bytes, and a.idx beside it describes 2,002"),
    "idx": (lambda f: cut(megatron(f / "a.bin", IDS).with_suffix(".idx"), 9).with_suffix(".bin"), "7 rows: it is cut off"),
    "no index": (no_index, "a.idx is not an index of Megatron-LM's"),
    "another's": (foreign_index, "has 2,002 bytes, and a.idx beside it describes 1,600"),
    "json": (contradicted, "holds 1,001 tokens, and tokens.json beside it says 900"),
    "broken json": (broken_json, "tokens.json cannot be read"),
    "empty": (empty, "is empty; leave it out"),
    "one": (lambda f: raw(f / "a.bin", IDS[:1]), "holds 1 token, and a sample needs two"),
    "wide": (lambda f: raw(f / "a.bin", IDS, "uint32"), "read as uint16, and every second id is 0: it looks like uint32"),
    "past": (lambda f: raw(f / "a.bin", np.array([1, 2, 500])), "holds the id 500, and the vocabulary has 500"),
    "negative": (lambda f: numpy(f / "a.npy", np.array([1, -1, 2]), "int64"), "holds the id -1"),
    "floats": (lambda f: numpy(f / "a.npy", IDS, "float32"), r"holds float32 of shape \[1001\]"),
    "matrix": (lambda f: numpy(f / "a.npy", IDS[:1000].reshape(10, 100), "uint16"), r"holds uint16 of shape \[10, 100\]"),
    "half npy": (lambda f: cut(numpy(f / "a.npy", IDS, "uint16"), 100), "is not a whole .npy file"),
    "text": (lambda f: raw(f / "a.txt", IDS), "does not end in .bin or .npy"),
    "none": (lambda f: f / "b.bin", "names no file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line_before_training(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as told:
        TokenFiles(str(path), CONTEXT, vocabulary=500, setting="recipe.valid")
    assert str(told.value).startswith("recipe.valid: ")
    assert "\n" not in str(told.value)


def test_a_file_of_uint16_that_is_read_as_uint32_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds the id \d\d,\d+,\d+, and the vocabulary has 500.*recipe.dtype \(now uint32\)"):
        TokenFiles(str(raw(tmp_path / "a.bin", IDS[:1000])), CONTEXT, vocabulary=500, dtype="uint32")


def test_an_id_past_the_vocabulary_that_no_block_showed_is_refused_when_its_row_is_read(tmp_path: Path) -> None:
    """On a GPU it would end in an assertion of the device that names nothing."""
    ids = np.random.default_rng(1).integers(1, 500, 1_000_000)
    ids[15_000] = 501
    data = TokenFiles(str(raw(tmp_path / "a.bin", ids)), CONTEXT, vocabulary=500)
    row = 15_000 // CONTEXT
    data.take(torch.tensor([row - 2]))
    with pytest.raises(UserError, match=r"a\.bin holds the id 501, and the vocabulary has 500"):
        data.take(torch.tensor([row]))


MEASURE = """
import sys, torch
from pathlib import Path
from harness.data.token_files import TokenFiles

def kb(name):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1])

TokenFiles(sys.argv[1], 1024).take(torch.zeros(8).long())
before = kb("RssAnon"), kb("RssFile")
data = TokenFiles(sys.argv[2], 1024)
rows = data.take(torch.linspace(0, len(data) - 1, 512).long())
data.fingerprint()
print(len(data), kb("RssAnon") - before[0], kb("RssFile") - before[1])
"""


def test_a_file_of_100_gb_takes_a_process_no_memory_and_is_not_read_to_start(tmp_path: Path) -> None:
    """A sparse file: were more of it touched than some blocks and the rows of a batch, pages of it would be resident."""
    small, large = raw(tmp_path / "small.bin", IDS), tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(100_000_000_000)
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True, check=True)
    rows, private_kb, mapped_kb = map(int, done.stdout.split())
    assert rows == 48_828_125
    assert private_kb < 50_000
    assert mapped_kb < 50_000


def test_the_recipe_wants_files_and_keeps_validation_apart(tmp_path: Path) -> None:
    raw(tmp_path / "train.bin", IDS)
    raw(tmp_path / "val.bin", IDS[:200])
    knobs: dict[str, Any] = {
        "kind": "gpt2",
        "overrides": ["n_layer=1", "n_embd=16", "n_head=2", "vocab_size=512"],
        "context": CONTEXT,
    }

    def recipe(**more: Any) -> Any:
        return load_recipe(RecipeConfig(use="tokens", knobs={**knobs, **more}))

    both = recipe(data=str(tmp_path / "train.bin"), valid=str(tmp_path / "val.bin"))
    assert len(both.data("train")) == 63
    assert len(both.data("valid")) == 13
    assert recipe(data=str(tmp_path)).data("valid") is None
    with pytest.raises(UserError, match=r"recipe.valid: .*val.bin is among the files of recipe.data too"):
        recipe(data=str(tmp_path / "*.bin"), valid=str(tmp_path / "val.bin")).data("valid")
    with pytest.raises(UserError, match=r"recipe.data: missing; give the files of tokens"):
        recipe().data("train")
    with pytest.raises(UserError, match=r"^recipe.data: is 3; give"):
        recipe(data=3)
    with pytest.raises(UserError, match=r"recipe.dat: .* no such field; did you mean data\?"):
        recipe(dat="x")


def test_the_vocabulary_of_a_kind_is_that_of_tokens_json(tmp_path: Path) -> None:
    raw(tmp_path / "a.bin", IDS)
    write_index(tmp_path, {"a.bin": len(IDS)})
    recipe: Any = load_recipe(RecipeConfig(use="tokens", knobs={"kind": "gpt2", "data": str(tmp_path), "context": CONTEXT}))
    assert recipe._config().vocab_size == 500


def test_the_recipe_mixes_named_sources_and_validates_on_named_sets(tmp_path: Path) -> None:
    for number, name in enumerate(("web", "code", "val_web", "val_code")):
        raw(tmp_path / f"{name}.bin", IDS[: 1000 - 200 * number])
    sources = [f"{name}={tmp_path}/{name}.bin" for name in ("web", "code")]
    knobs: dict[str, Any] = {"kind": "gpt2", "overrides": ["n_layer=1", "vocab_size=512"], "context": CONTEXT, "data": sources}

    def recipe(**more: Any) -> Any:
        return load_recipe(RecipeConfig(use="tokens", knobs={**knobs, **more}))

    sets = [f"{name}={tmp_path}/val_{name}.bin" for name in ("web", "code")]
    both = recipe(weights=[0.75, 0.25], valid=sets)
    config = decode({"batch": {"reference": 8, "total": 8}, "optim": {"lr": 0.1}, "schedule": {"samples": 64}})
    data = both.data("train")
    order = training_order(data, config).take(0, 400)
    assert (order < 63).sum() == 300
    assert data.source(64) == f"code: {tmp_path}/code.bin, tokens 16 to 33"
    row = data.take(torch.tensor([64]))["tokens"][0]
    assert row.tolist() == IDS[16:33].tolist()
    assert list(both.data("valid")) == ["web", "code"]
    for weights, said in (([1.0], "are 1, and recipe.data names 2 sources"), ([], "are 0, and recipe.data names 2 sources")):
        with pytest.raises(UserError, match=rf"recipe.weights: {said}; give both alike"):
            recipe(weights=weights).data("train")
    with pytest.raises(UserError, match=r"recipe.weights: are 2, and recipe.data names no sources"):
        recipe(weights=[1.0, 1.0], data=str(tmp_path / "web.bin")).data("train")
    with pytest.raises(UserError, match=r"recipe.data: .* are not all NAME=FILES, with a name each"):
        recipe(weights=[1.0, 1.0], data=[*sources[:1], str(tmp_path)]).data("train")
