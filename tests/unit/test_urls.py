"""URLs in a run file: a credential is refused before anything is written and never repeated; a store can hold checkpoints."""

import json
import os
import re
from pathlib import Path

import pytest

from harness.config.errors import UserError, redacted
from harness.config.loader import decode
from harness.config.urls import check_no_credentials, check_store, checked_place
from launch.cli import main
from launch.options.out_option import write_out
from tests.support.processes import ROOT

SECRETS = [
    "s3://AKIA:hunter2@bucket/run",
    "s3://AKIA:hunter2/with/slash@bucket/run",
    "s3://AKIA:hunter2?odd#signs@bucket/run",
    "s3://hunter2@bucket/run",
    "S3://AKIA%3Ahunter2%40bucket/run",
    "https://hunter2@example.com/x",
    "https://example.com/x?X-Amz-Signature=hunter2&X-Amz-Expires=60",
    "s3://bucket/run?AWSAccessKeyId=AKIA&Signature=hunter2",
    "abfs://box@account.dfs.core.windows.net/run?sv=2024&sig=hunter2",
    "gs://bucket/run?access_token=hunter2",
    "https://example.com/x#access_token=hunter2",
    "sftp://me:hunter2@host/run",
    "simplecache::s3://AKIA:hunter2@bucket/run",
    "filecache::zip://a.zip::https://example.com/a.zip?token=hunter2",
    "see ftp://me:hunter2@host/run for it",
]
CLEAN = [
    "s3://bucket/run",
    "s3://bucket/runs@2024/a",
    "abfs://box@account.dfs.core.windows.net/run",
    "sftp://me@host:22/run",
    "https://example.com:8080/data@v1/x.txt?page=2&design=blue",
    "git+ssh://git@example.com/x",
    "runs/a@b:c",
]


def tree(section: str, setting: str, value: object) -> dict[str, dict[str, object]]:
    base: dict[str, dict[str, object]] = {
        "batch": {"reference": 32, "per_gpu": 32}, "optim": {"lr": 0.1}, "schedule": {"epochs": 1}, "recipe": {"samples": 64},
    }  # fmt: skip
    return base | {section: {**base.get(section, {}), setting: value}}


@pytest.mark.parametrize("secret", SECRETS)
def test_a_credential_is_refused_in_any_setting_and_not_repeated(secret: str) -> None:
    for section, setting, value in (
        ("checkpoint", "dir", secret),
        ("recipe", "files", secret),
        ("recipe", "sources", ["a", secret]),
        ("scaling", "evidence", secret),
        ("backend", "deepspeed", {"x": {"y": [secret]}}),
        ("guard", "bad_samples", secret),  # a mistake of its own, which would show the value
    ):
        with pytest.raises(UserError, match="credential") as error:
            decode(tree(section, setting, value))
        assert "hunter2" not in str(error.value)
        assert error.value.setting == f"{section}.{setting}" or section == "backend"


@pytest.mark.parametrize("text", CLEAN)
def test_what_holds_no_credential_passes(text: str) -> None:
    check_no_credentials("recipe.files", text)


@pytest.mark.parametrize("secret", SECRETS)
def test_no_message_repeats_what_may_be_a_credential(secret: str) -> None:
    assert "hunter2" not in redacted(f"cannot reach {secret}")
    assert "hunter2" not in str(UserError(secret, f"{secret!r} is wrong", f"not {secret}"))


@pytest.mark.parametrize("secret", SECRETS)
def test_nor_where_a_command_took_it_for_a_path(secret: str) -> None:
    assert "hunter2" not in str(UserError("run file", f"{Path(secret)}: No such file or directory", "give a path"))


@pytest.mark.parametrize("path", ["runs/a@b:c", "/data/a@b", "C:/a", "file.py:12", "s3://bucket/run", "sizes of a?b"])
def test_what_is_no_url_is_shown_as_it_is(path: str) -> None:
    assert redacted(path) == path


@pytest.mark.parametrize("where", ["s3://bucket/run", "abfs://box@account/run", "file:///disk/run", "gs://b/a b".replace(" ", "_")])
def test_stores_that_hold_checkpoints(where: str) -> None:
    check_store("checkpoint.dir", where)


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ("memory://x", "one process"),
        ("http://host/x", "not a known store"),
        ("simplecache::s3://bucket/x", "chain"),
        ("s3://bucket/x::file:///y", "chain"),
        ("s3:///run", "names no bucket"),
        ("sftp:///run", "names no bucket or host"),
        ("s3://bucket/run?versionId=3", "query"),
        ("s3://bucket/../other", r"\.\."),
        ("s3://bucket/a\nb", "blanks"),
        ("s3://bucket/$(id)", "blanks"),
    ],
)
def test_places_that_cannot_hold_a_checkpoint_are_refused(where: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        check_store("checkpoint.dir", where)


CPU = ["--gpus", "0", "--procs", "2"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("plan", ["--gpus", "8"]),
        ("train", []),
        ("launch", CPU),
        ("launch", ["--gpus", "8", "--slurm", "--dry-run"]),
        ("launch", ["--gpus", "8", "--k8s", "--image", "a/b:1", "--claim", "runs", "--dry-run"]),
        ("bench", ["--gpus", "0", "--procs", "1,2"]),
        ("sweep", ["--batches", "32,64"]),
        ("find-batch", CPU),
        ("lr-range", []),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_no_command_writes_a_credential_or_shows_it(
    command: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [command, str(ROOT / "configs" / "digits.yaml"), "--checkpoint.dir", SECRETS[0]]
    assert main([*argv, *options]) == 2
    out = capsys.readouterr()
    assert "hunter2" not in out.out + out.err
    assert "credential" in out.err
    assert list(tmp_path.iterdir()) == []
    assert "hunter2" not in json.dumps(dict(os.environ))


RUN = str(ROOT / "configs" / "digits.yaml")
WRITES = {
    "tokenize": [RUN, "--tokenizer", "bytes", "--no-eos", "--out"],
    "export": ["run", "--out"],
    "report": ["run", "--out"],
    "fit": ["run", "--out"],
    "init": ["digits", "--batch.reference", "32", "--optim.lr", "0.1", "--schedule.epochs", "1", "--out"],
    "configs": ["digits", "--to"],
    "doctor": ["--dir"],
    "branch": ["run", "--out"],
    "sweep": [RUN, "--batches", "32", "--out"],
    "bench": [RUN, *CPU, "--out"],
    "find-batch": [RUN, *CPU, "--memory", "1GiB", "--out"],
    "lr-range": [RUN, "--out"],
}
"""By command: the arguments before a path at which it writes."""


@pytest.mark.parametrize("command", WRITES)
@pytest.mark.parametrize("where", ["s3://KEY:hunter2@bucket/run", "s3:/KEY:hunter2@bucket/run"])
def test_no_command_takes_a_url_for_a_folder_to_write_into(
    command: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It wrote into one on this machine, named after the key."""
    monkeypatch.chdir(tmp_path)
    assert main([command, *WRITES[command], where]) == 2
    out = capsys.readouterr()
    assert "a URL; give a path on this machine" in out.err
    assert "hunter2" not in out.out + out.err
    assert list(tmp_path.iterdir()) == []


def test_every_command_that_writes_where_it_is_told_refuses_a_url() -> None:
    """`type=Path` is for what is read."""
    flags = [
        f"{file.stem}{found.group(1)}"
        for file in (ROOT / "launch").rglob("*.py")
        for found in re.finditer(r'"(--[a-z]+)",[^()]*type=Path\b', file.read_text())
    ]
    assert sorted(flags) == ["compare_plans--bench", "evidence_option--from"]


def test_what_a_command_writes_replaces_no_link_and_no_device(tmp_path: Path) -> None:
    """As root, `--out /dev/null` made a file of it."""
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    write_out(link, "one")
    assert (link.is_symlink(), file.read_text()) == (True, "one")
    with pytest.raises(UserError, match=r"--out: .* cannot be written"):
        write_out(tmp_path, "two")
    with pytest.raises(UserError, match=r"--out: .* give a file in a folder that is there"):
        write_out(tmp_path / "no" / "file", "three")


@pytest.mark.parametrize("where", ["s3:/KEY:hunter2@bucket/run", "s3//KEY:hunter2@bucket/run", "gs:bucket/run", "file:/tmp/run"])
def test_a_url_that_lost_a_slash_is_no_folder(where: str) -> None:
    """It was one, named after the key."""
    with pytest.raises(UserError, match=r"write SCHEME://, or \./ before the name of a folder") as e:
        checked_place("checkpoint.dir", where)
    assert "hunter2" not in str(e.value)
    assert checked_place("checkpoint.dir", "./gs:bucket/run") == "./gs:bucket/run"


@pytest.mark.parametrize("text", ["s3:/KEY:hunter2@bucket/run", "see s3//KEY:hunter2@bucket/run"])
def test_a_credential_in_it_is_refused_in_any_setting(text: str) -> None:
    with pytest.raises(UserError, match="has a URL with a credential in it") as e:
        check_no_credentials("run.dir", text)
    assert "hunter2" not in str(e.value)


def test_a_file_url_with_a_host_is_refused() -> None:
    """It was taken for a folder of the host's name, here."""
    with pytest.raises(UserError, match="names a host"):
        checked_place("checkpoint.dir", "file://localhost/tmp/run")
