"""widebatch tokenize: the same bytes for any number of processes and after a kill, and every document once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config.errors import UserError
from harness.data import text_parts as parts_of
from harness.data.text_parts import text_files, text_parts
from harness.data.token_files import TokenFiles
from harness.tools.tokenize import tokenize
from launch.cli import main
from tests.support.processes import ROOT, environ

transformers = pytest.importorskip("transformers")

END = "<end>"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "looks", "at", "it"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of pieces of words, which has a token for the end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tokenizer")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    words.train_from_iterator([" ".join(WORDS)], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END).save_pretrained(folder)
    return folder


def lines(count: int, seed: int) -> list[str]:
    """Sentences of chance words."""
    chosen = np.random.default_rng(seed)
    return [" ".join(chosen.choice(WORDS, chosen.integers(1, 12))) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two text files, one empty one, and one of documents in lines."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(lines(200, 0)))
    (folder / "b.txt").write_text("")
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in lines(100, 1)) + "\n")
    (folder / "d.txt").write_text("\n".join(lines(50, 2)) + "\n")
    (folder / "e.md").write_text("not one of them")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def made(corpus: Path, out: Path, tokenizer: Path | str, procs: int, **more: Any) -> str:
    """Tokens of the corpus."""
    options: dict[str, Any] = {"suffixes": [".txt", ".jsonl"], "field": "text", "eos": tokenizer != "bytes"}
    return tokenize([corpus], out, tokenizer=str(tokenizer), procs=procs, **(options | more))


def test_any_number_of_processes_writes_the_same_files_with_every_document_once(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_of, "LEAST", 700)
    told = made(corpus, tmp_path / "one", tokenizer, 1)
    assert made(corpus, tmp_path / "three", tokenizer, 3) == told.replace("one", "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert made(corpus, tmp_path / "one", tokenizer, 1) == f"{tmp_path / 'one'} is complete already"
    index = json.loads((tmp_path / "one" / "tokens.json").read_text())
    assert len(index["files"]) > 10
    assert (index["documents"], index["eos"], index["dtype"]) == (103, 0, "uint16")
    data = TokenFiles(str(tmp_path / "one"), 32)
    assert (data.vocabulary, sum(index["files"].values())) == (280, index["tokens"])
    ids = np.concatenate([np.fromfile(path, np.uint16) for path in data.paths])
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    texts = [words.decode(part) for part in np.split(ids, np.flatnonzero(ids == 0) + 1)[:-1]]
    expected = [(corpus / "a.txt").read_text(), "", *lines(100, 1), (corpus / "d.txt").read_text()]
    assert [text.removesuffix(END) for text in texts] == expected


def test_a_command_that_was_killed_goes_on_where_it_was(corpus: Path, tmp_path: Path) -> None:
    """What it had written stays as it is; meanwhile the folder cannot be trained on."""
    (corpus / "f.txt").write_text("\n".join(lines(60_000, 3)))
    command = [sys.executable, "-m", "launch", "tokenize", str(corpus), "--tokenizer", "bytes", "--no-eos", "--procs", "1"]
    begun = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=environ(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert begun.stdout is not None
    first = next(line for line in begun.stdout if ".bin" in line)
    with pytest.raises(UserError, match=rf"--out: .*out is in use by widebatch tokenize, process {begun.pid} on .*; wait for it"):
        made(corpus, tmp_path / "out", "bytes", 1)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.communicate()
    assert first.startswith("1/")
    before = (tmp_path / "out" / "00000.bin").stat()
    (tmp_path / "out" / ".keep").touch()
    with pytest.raises(UserError, match="out is not complete: `widebatch tokenize` was interrupted; run the same command again"):
        TokenFiles(str(tmp_path / "out"), 32)
    made(corpus, tmp_path / "out", "bytes", 1)
    after = (tmp_path / "out" / "00000.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    made(corpus, tmp_path / "whole", "bytes", 1)
    (tmp_path / "out" / ".keep").unlink()  # what is not its own it leaves alone
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "out")) > 2


def test_parts_hold_every_byte_once_at_any_size(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = text_files([corpus], [".txt", ".jsonl"])
    assert [path.name for path in files] == ["a.txt", "b.txt", "c.jsonl", "d.txt"]
    text = {path: path.read_text() for path in files if path.suffix == ".txt"}
    for least in (7, 100, 5000, 10**6):
        monkeypatch.setattr(parts_of, "LEAST", least)
        monkeypatch.setattr(parts_of, "PARTS", 10**6)
        spans = [span for part in text_parts(files) for span in part]
        for path, whole in text.items():
            found = [piece for span in spans if span.path == path for piece in parts_of.pieces(span, "text")]
            assert "".join(piece.text for piece in found) == whole
            assert [piece.ends for piece in found].count(True) == 1
            assert found[-1].ends
        found = [piece for span in spans if span.path.suffix == ".jsonl" for piece in parts_of.pieces(span, "text")]
        assert [piece.text for piece in found] == lines(100, 1)


def test_bytes_that_are_no_text_are_replaced_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\xff bad\n")
    told = made(tmp_path / "a.txt", tmp_path / "out", "bytes", 1)
    assert told.endswith("uint16; 1 blocks had bytes that are not UTF-8, now U+FFFD")
    assert TokenFiles(str(tmp_path / "out"), 8).vocabulary == 256


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("{not json}\n", [], "error: FILES: {file}, byte 0: the line is not JSON"),
        (
            '{"text": "x"}\n{"body": "x"}\n',
            [],
            "byte 14: the line has no text in 'text'; fix it, or say where the text is: --field",
        ),
        ("", [], "error: FILES: hold 0 tokens in all; give files with text"),
        ('{"text": "x"}\n', ["--procs", "0"], "error: --procs: is 0; give at least 1"),
        (
            '{"text": "x"}\n',
            ["--tokenizer", "/none"],
            "error: --tokenizer: '/none' is not a folder; give a folder with a tokenizer",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    text: str, flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    argv = ["tokenize", str(file), "--tokenizer", "bytes", "--no-eos", "--procs", "1", "--out", str(tmp_path / "out"), *flags]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said.format(file=file) in err
    assert err.count("\n") == 1


def test_a_folder_of_something_else_is_left_as_it_is(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'bytes' has no token for the end of a text, to put between documents; .* --no-eos"):
        made(corpus, tmp_path / "out", "bytes", 1, eos=True)
    with pytest.raises(UserError, match=r"--out: .*corpus is not empty; give a new folder"):
        made(corpus, corpus, tokenizer, 1)
    with pytest.raises(UserError, match=r"FILES: .*corpus holds no file that ends in .rst"):
        made(corpus, tmp_path / "out", tokenizer, 1, suffixes=[".rst"])
    made(corpus / "d.txt", tmp_path / "out", "bytes", 1)
    with pytest.raises(UserError, match="out holds tokens of other files, or of another tokenizer"):
        made(corpus / "a.txt", tmp_path / "out", "bytes", 1)
    with pytest.raises(UserError, match="holds tokens of other files, or of another tokenizer"):
        made(corpus / "d.txt", tmp_path / "out", tokenizer, 1)
