"""Credentials that a recipe's knob, or any other setting, holds: refused in words that show none, and no file is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import decode, load
from harness.config.schema import WatchConfig
from harness.watch.wandb_names import run_names
from launch.cli import main
from tests.support.processes import ROOT

RANDOM = "Q9x7Lm2Zt5Rk8Wb3Nc6Vd1Ff4"
"""No credential of anyone's."""
FOUND: list[tuple[str, str]] = [
    *((name, "x9") for name in ("password", "db_password", "passwd", "passphrase", "secret", "client_secret", "credentials")),
    *((name, "x9") for name in ("api_key", "apiKey", "openai_api_key", "secret_key", "aws_secret_access_key", "private_key")),
    *((name, "x9") for name in ("hf_token", "hub_token", "access_token", "auth_token", "github_token", "api_token", "wandb_token")),
    *((name, f"hf_{RANDOM}") for name in ("token", "key", "anything", "root")),
    ("token", "hf_short"),
    ("token", RANDOM),
    ("key", RANDOM),
    ("root", f"data for sk-proj-{RANDOM}"),
    ("root", "AKIA" + "ABCDEFGH12345678"),
    ("root", f"ghp_{RANDOM}"),
    ("root", f"github_pat_{RANDOM}"),
    ("root", f"glpat-{RANDOM}"),
    ("root", f"xoxb-1234-{RANDOM}"),
    ("root", "-----BEGIN RSA PRIVATE " + "KEY-----\nabc"),
]
TOLD = [
    f"see hf_{RANDOM}", f"ya29.{RANDOM}", f"GOCSPX-{RANDOM}", f"nvapi-{RANDOM}", f"wandb_v1_{RANDOM}", f"npm_{RANDOM}{RANDOM}",
    f"pypi-AgE{RANDOM}{RANDOM}", f"sk_live_{RANDOM}", f"SG.{RANDOM}.{RANDOM}", "dapi" + "0123456789abcdef" * 2,
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{RANDOM}", f"AccountKey={RANDOM}{RANDOM}==", f"AWS_SECRET_ACCESS_KEY={RANDOM}{'x' * 15}",
]  # fmt: skip
"""Free text with keys of known forms in it."""
FINE: list[tuple[str, Any]] = [
    ("item", "token"),
    ("token_budget", 4096),
    ("tokens", "train.bin"),
    ("token", "byte-level"),
    ("token", "<s>"),
    ("pad_token", "<pad>"),
    ("eos_token", "</s>"),
    ("mask_token", "[MASK]"),
    ("stop_token", "x9"),
    ("user_token", "<|user|>"),
    ("key", "image"),
    ("sort_key", "length"),
    ("label_key", "y1"),
    ("password_file", "/run/secrets/db"),
    ("api_key_env", "OPENAI_API_KEY"),
    ("secret", 7),
    ("hf_token", True),
    ("hf_token", None),
    ("api_key", ""),
    ("model", "hf_internal_testing/tiny-random-gpt2"),
    ("model", "sk-learn"),
    ("model", "meta-llama/Llama-3.2-1B"),
    ("revision", "5f0b02c75b57c5855da9ae460ce51323ea669d8a"),
]


NEEDED = {"sweep": ["--batches", "32,64"], "bench": ["--gpus", "0", "--procs", "1"]}


def tree(name: str, value: Any) -> dict[str, Any]:
    """A run file with one knob."""
    recipe = {"use": "tokens", "root": "/data", name: value}
    return {"recipe": recipe, "batch": {"reference": 32, "total": 32}, "optim": {"lr": 0.1}, "schedule": {"samples": 320}}


@pytest.mark.parametrize(("name", "value"), FOUND)
def test_a_knob_that_is_a_credential_is_refused_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        decode(tree(name, value))
    told = str(caught.value)
    assert told.startswith(
        f"recipe.{name}: looks like a credential ({len(value)} characters), which would be written to the run folder"
    )
    assert "from the environment: os.environ[" in told
    assert value not in told
    assert RANDOM not in told


@pytest.mark.parametrize(("name", "value"), FOUND[:1] + FOUND[7:8])
def test_in_lists_too(name: str, value: str) -> None:
    with pytest.raises(UserError, match="looks like a credential"):
        decode(tree(name, [1, value]))


@pytest.mark.parametrize(("name", "value"), FINE)
def test_what_only_sounds_like_one_is_taken(name: str, value: Any) -> None:
    assert decode(tree(name, value)).recipe.knobs[name] == value


@pytest.mark.parametrize("section", ["backend", "watch", "init_from"])
def test_other_settings_are_looked_at_as_well(section: str) -> None:
    over: Any = {"deepspeed": {"comet": {"api_key": "x9"}}} if section == "backend" else {"project": f"hf_{RANDOM}"}
    with pytest.raises(UserError, match="looks like a credential"):
        decode(tree("width", 4) | {section: f"/data/hf_{RANDOM}" if section == "init_from" else over})


@pytest.mark.parametrize("text", TOLD)
@pytest.mark.parametrize("where", ["notes", "tags", "name", "knob's name", "WANDB_NOTES", "WANDB_TAGS", "flag that is no YAML"])
def test_free_text_with_a_key_in_it_is_refused_and_not_shown(where: str, text: str) -> None:
    tried: Callable[[], Any]
    if where.startswith("WANDB"):
        tried = lambda: run_names(WatchConfig(), {where: text}, Path("run"))  # noqa: E731
    elif where.startswith("flag"):
        tried = lambda: load(ROOT / "configs" / "digits.yaml", {"watch.notes": f"a: {text}: [b"})  # noqa: E731
    else:
        given = {where: [text] if where == "tags" else text}
        tried = lambda: decode(tree(text, 3) if "knob" in where else tree("width", 4) | {"watch": given})  # noqa: E731
    with pytest.raises(UserError) as caught:
        tried()
    assert not any(part in str(caught.value) for part in (RANDOM, "0123456789abcdef"))


@pytest.mark.parametrize("by", ["flag", "file"])
@pytest.mark.parametrize("command", ["train", "launch", "plan", "sweep", "bench"])
def test_no_command_writes_one_into_a_file(
    command: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = f"hf_{RANDOM}"
    content = tree("token", secret) if by == "file" else tree("root", "/data")
    (tmp_path / "mine.yaml").write_text(json.dumps(content))
    argv = [
        command,
        "mine.yaml",
        *NEEDED.get(command, []),
        *(["--recipe.api_key", secret] if by == "flag" else []),
    ]
    assert main(argv) == 2
    told = capsys.readouterr()
    assert "looks like a credential" in told.err
    assert secret not in told.out + told.err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"], "nothing is written"
