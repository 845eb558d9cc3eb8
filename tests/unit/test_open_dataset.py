"""Data on disk in the formats that people have: every kind gives the same samples by number, and what is wrong is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config.errors import UserError
from harness.data import json_lines
from harness.data.columns import Columns
from harness.data.open_dataset import open_dataset, read_samples
from harness.data.parquet_files import ParquetRows, open_parquet
from harness.data.workers import Reader, Task
from tests.support.data_files import KINDS, LABEL, NAMES, ROWS, TEXT, X, column, lines, parquet
from tests.support.processes import ROOT


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_any_sample_by_its_number(kind: str, tmp_path: Path) -> None:
    """In any order, one by one and many at once; and once more, when what was indexed is found."""
    given = KINDS[kind](tmp_path)
    order = np.random.default_rng(0).permutation(ROWS).tolist()
    for _ in range(2):
        data: Any = open_dataset(given)
        assert len(data) == ROWS
        found = Reader(data, list).fetch(Task(tuple(order), 0, 0)).batch
        for number, sample in zip(order, found, strict=True):
            one = data[number]
            for each in (sample, one):
                assert column(each, "x") == X[number]
                assert column(each, "label") == LABEL[number]
                assert list(column(each, "pair")) == [number, number + 1]
                assert column(each, "text") == TEXT[number]
    few: Any = open_dataset(given, NAMES.get(kind, ["x", "label", "pair", "text"])[:1], tensors=False)
    assert [name.partition(".")[0] for name in few[0]] == ["x"]
    assert [(number, column(sample, "text")) for number, sample in read_samples(given)] == list(enumerate(TEXT))


def compress(folder: Path, name: str, codec: str) -> None:
    """Compress the shards of an MDS folder, as its writer does with `compression`, and remove what they were."""
    pa = pytest.importorskip("pyarrow")
    tree = json.loads((folder / "index.json").read_text())
    for shard in tree["shards"]:
        raw = folder / shard["raw_data"]["basename"]
        shard["compression"], shard["zip_data"] = (
            name,
            {"basename": f"{raw.name}.{name.partition(':')[0]}", "bytes": 1, "hashes": {}},
        )
        if raw.exists():
            with pa.output_stream(str(folder / shard["zip_data"]["basename"]), compression=codec) as out:
                out.write(raw.read_bytes())
            raw.unlink()
    (folder / "index.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(("name", "codec"), [("zstd:7", "zstd"), ("gz:5", "gzip"), ("bz2:9", "bz2"), ("br:4", "brotli")])
def test_compressed_shards_of_mds_are_unpacked_once(name: str, codec: str, tmp_path: Path) -> None:
    folder = Path(KINDS["mds"](tmp_path))
    compress(folder, name, codec)
    data: Any = open_dataset(str(folder))
    assert [(data[n]["x"], data[n]["text"]) for n in range(ROWS)] == list(zip(X.tolist(), TEXT, strict=True))
    assert not list(folder.glob(".*"))
    written = [path.stat().st_mtime_ns for path in data.paths]
    assert open_dataset(str(folder))[49]["x"] == X[49]  # type: ignore[index]
    assert [path.stat().st_mtime_ns for path in data.paths] == written


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: cut(f / "shard.00001.mds.zstd", 20), r"shard.00001.mds.zstd cannot be unpacked beside itself"),
        (lambda f: (f / "shard.00000.mds.zstd").unlink(), r"shard.00000.mds.zstd cannot be unpacked beside itself"),
        (lambda f: (f / "shard.00000.mds.zstd").write_bytes((f / "shard.00001.mds.zstd").read_bytes()), "and index.json says"),
        (
            lambda f: (f / "index.json").write_text((f / "index.json").read_text().replace("zstd:7", "snappy")),
            "compressed by snappy",
        ),
    ],
)
def test_compressed_shards_that_are_damaged_are_named(damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    folder = Path(KINDS["mds"](tmp_path))
    compress(folder, "zstd:7", "zstd")
    damage(folder)
    with pytest.raises(UserError, match=said):
        open_dataset(str(folder))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_columns_of_numbers_are_tensors_read_at_once(kind: str, tmp_path: Path) -> None:
    data = open_dataset(KINDS[kind](tmp_path), ["x", "label", "pair"])
    assert isinstance(data, Columns)
    assert data.row_bytes == 8 + 8 + 16
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    rows = data.take(order)
    assert rows["x"].tolist() == X[order].tolist()
    assert rows["label"].tolist() == LABEL[order].tolist()
    assert rows["pair"].tolist() == [[n, n + 1] for n in order.tolist()]
    if kind == "parquet":
        assert data.source(47) == f"{tmp_path / '2.parquet'}, row group 3, row 2"
        assert data.summary().endswith("data.order: blocks with data.block: 8 reads each of them once an epoch")


def test_row_groups_are_kept_as_far_as_memory_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of blocks each is read once; of the others as many are kept as fit."""
    pq = pytest.importorskip("pyarrow.parquet")
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(file: Any, number: int, *given: Any, **more: Any) -> Any:
        read.append(number)
        return original(file, number, *given, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    files = parquet(tmp_path, (0, ROWS))
    data = open_parquet(files, ["x", "pair"], tensors=True, cache_bytes=1 << 20)
    for start in range(0, ROWS, 4):
        data.take(torch.arange(start, min(start + 4, ROWS)))  # type: ignore[union-attr]
    assert read == list(range(7))
    read.clear()
    data = open_parquet(files, ["x", "pair"], tensors=True, cache_bytes=1)
    data.take(torch.tensor([0, 49, 1]))  # type: ignore[union-attr]
    assert read == [0, 6], "each once for a batch, and one is kept"


def test_a_dataset_in_memory_is_taken_with_its_filter_and_a_stream_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_dict({"x": X, "text": TEXT})
    even = open_dataset(whole.filter(lambda rows: [x * 8 % 2 == 0 for x in rows["x"]], batched=True), ["x"])
    assert isinstance(even, Columns)
    assert even.take(torch.arange(len(even)))["x"].tolist() == X[::2].tolist()
    for wrong, said in (
        (whole.to_iterable_dataset(), "is a stream: how many samples it has, as after a filter, nobody knows"),
        (datasets.DatasetDict(a=whole, b=whole), r"is a dict of the splits a, b; give one of them, as dataset\['a'\]"),
        (whole.select([]), "the dataset has no rows"),
        ({"x": 1}, "is a dict; give the path of files"),
    ):
        with pytest.raises(UserError, match=f"recipe.data: .*{said}"):
            open_dataset(wrong)


def cut(path: Path, keep: int) -> None:
    """A file's first bytes."""
    path.write_bytes(path.read_bytes()[:keep])


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("parquet", lambda f: cut(f / "1.parquet", 200), "1.parquet cannot be read"),
    ("parquet", lambda f: (f / "1.parquet").write_bytes((f / "0.parquet").read_bytes()[:4]), "1.parquet cannot be read"),
    ("saved", lambda f: cut(sorted((f / "saved").glob("*.arrow"))[1], 1000), r"data-00001-of-00003.arrow is cut off"),
    ("saved", lambda f: sorted((f / "saved").glob("*.arrow"))[2].unlink(), r"data-00002-of-00003.arrow cannot be read"),
    ("lines", lambda f: (f / "1.jsonl").write_bytes(b"\n\n"), "1.jsonl holds no samples"),
    ("lines", lambda f: (f / "1.jsonl.index").write_bytes(b"{}"), "1.jsonl.index is damaged, or no index; remove it"),
    ("tars", lambda f: cut(f / "shard-001.tar", 700), "shard-001.tar cannot be read as a tar"),
    ("tars", lambda f: cut(f / "shard-001.tar", 2500), "shard-001.tar cannot be read as a tar"),
    ("tars", lambda f: (f / "shard-001.tar").unlink(), r"shard-001.tar of .* is missing"),
    ("mds", lambda f: cut(f / "shard.00001.mds", 20), "shard.00001.mds has 20 bytes, and index.json says"),
    ("mds", lambda f: (f / "shard.00002.mds").unlink(), "shard.00002.mds cannot be read"),
    ("mds", lambda f: (f / "index.json").write_text("{"), "index.json cannot be read"),
]


@pytest.mark.parametrize(("kind", "damage", "said"), DAMAGE)
def test_a_shard_that_is_missing_or_damaged_is_named(kind: str, damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    given = KINDS[kind](tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=f"recipe.data: .*{said}"):
        open_dataset(given)


@pytest.mark.parametrize(("kind", "name"), [("lines", "1.jsonl"), ("tars", "shard-001.tar")])
def test_the_index_of_another_file_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    given = KINDS[kind](tmp_path)
    open_dataset(given)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"row 20", b"row xx"))
    with pytest.raises(UserError, match=f"{name}.index is the index of another file than {name} is now; remove it"):
        open_dataset(given)


def test_a_row_group_or_a_line_that_cannot_be_read_is_named_when_it_is_needed(tmp_path: Path) -> None:
    """A line is left out as any bad sample is; a row group, of which nothing can be had, ends the run."""
    given = lines(tmp_path)
    data: Any = open_dataset(given, ["x"])
    text = (tmp_path / "2.jsonl").read_bytes()
    at = text.index(b'{"x": 3.75')
    (tmp_path / "2.jsonl").write_bytes(text[:at] + b"}" + text[at + 1 :])
    fetched = Reader(data, list).fetch(Task((29, 30, 31), 0, 0))
    assert [sample["x"] for sample in fetched.batch] == [29 / 8, 31 / 8]
    ((place, why),) = fetched.bad
    assert place == 1
    assert "2.jsonl, byte" in why
    assert "the line is not JSON" in why
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "0.parquet"
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"x": X}), path, row_group_size=8, **options)
    raw = path.read_bytes()
    at = raw.index(np.float64(X[20]).tobytes())
    path.write_bytes(raw[:at] + np.float64(-1).tobytes() + raw[at + 8 :])
    rows: Any = open_dataset(str(path), ["x"])
    assert rows.take(torch.arange(16))["x"].tolist() == X[:16].tolist()
    with pytest.raises(UserError, match=r"0.parquet cannot be read \(row group 2: .*checksum"):
        rows.take(torch.arange(ROWS))


def test_what_makes_no_tensor_is_one_line(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"ids": [[1], [1, 2]], "gap": [1, None]}), tmp_path / "a.parquet")
    data = open_dataset(str(tmp_path / "a.parquet"), ["ids"])
    assert isinstance(data, ParquetRows)
    with pytest.raises(UserError, match="column ids has rows of 1 to 2 numbers, and a batch is one tensor; make them equally"):
        data.take(torch.tensor([0, 1]))
    with pytest.raises(UserError, match="column gap lacks 1 values"):
        open_dataset(str(tmp_path / "a.parquet"), ["gap"]).take(torch.tensor([1]))  # type: ignore[union-attr]
    with pytest.raises(UserError, match="has no column 'idss'; it has ids, gap"):
        open_dataset(str(tmp_path / "a.parquet"), ["idss"])
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(UserError, match=r"a.csv' is of no format that is known; give files that end in .parquet, .jsonl, .tar"):
        open_dataset(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(("name", "given"), [("pyarrow", "a.parquet"), ("datasets", "saved")])
def test_a_library_that_is_missing_is_one_line(name: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"recipe.data: .* needs? .*; pip install 'widebatch\[data\]'"):
        open_dataset(str(tmp_path / given))


def test_opening_what_needs_no_library_imports_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n\r\n2\r\n\n")
    code = (
        "import sys; from harness.data.open_dataset import open_dataset\n"
        f"print(open_dataset({str(tmp_path / 'a.jsonl')!r})[1], sorted({{'pyarrow', 'datasets', 'pandas'}} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"


def test_lines_are_found_wherever_blocks_cut_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"\n\r\n1\n22\r\n\n\r\n[3]\n4\r\n\r\n5"
    for block in range(1, len(text) + 1):
        monkeypatch.setattr(json_lines, "BLOCK", block)
        (tmp_path / f"{block}.jsonl").write_bytes(text)
        data: Any = open_dataset(str(tmp_path / f"{block}.jsonl"))
        assert [data[n] for n in range(len(data))] == [1, 22, [3], 4, 5]
