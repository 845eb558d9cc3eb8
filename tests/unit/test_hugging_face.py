"""Folders of Hugging Face's go into a run and out of it again: the same numbers, the same tokens, or one line that says why not."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.schema import RecipeConfig
from harness.data.feed import Table
from harness.recipes.base import Recipe, load_recipe
from harness.tools.export import export, widest, with_dtype
from harness.worker import work
from launch.cli import main

transformers = pytest.importorskip("transformers")

TEXT = "the quick brown fox jumps over the lazy dog, and the dog looks at the fox.\n"
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 280}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some text to train on."""
    file = tmp_path_factory.mktemp("text") / "fox.txt"
    file.write_text(TEXT * 60)
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama in bf16, its weights in several files, with a tokenizer of pieces of words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("llama", **SMALL))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture(scope="module")
def run(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps from that folder."""
    return trained(tmp_path_factory.mktemp("tuned"), {"folder": str(llama), "files": str(text), "suffix": ".txt"})


def trained(folder: Path, knobs: dict[str, Any]) -> Path:
    """A run folder, after two steps of causal_lm."""
    tree = {
        "recipe": {"use": "causal_lm", "context": 16, **knobs},
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"samples": 16},
        "scaling": {"warmup_epochs": 0},
        "watch": {"wandb": "off"},
        "run": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(tree))
    assert work(load(folder / "run.yaml"), "run", {}) == 0
    return folder / "run"


def recipe_of(folder: Path, **knobs: Any) -> Recipe:
    """The recipe of a folder."""
    return load_recipe(RecipeConfig(use="causal_lm", knobs={"folder": str(folder), "context": 16, **knobs}))


def tokens_of(recipe: Recipe) -> torch.Tensor:
    """All its training tokens."""
    data = recipe.data("train")
    assert isinstance(data, Table)
    return data.columns["tokens"]


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What a model says, out of training."""
    with torch.no_grad():
        out: torch.Tensor = model.eval()(tokens).logits
    return out


def test_a_run_from_a_bf16_folder_goes_out_as_it_was_trained(run: Path, llama: Path, text: Path, tmp_path: Path) -> None:
    """Read by transformers, the export says exactly what the trained weights say, of the same tokens; a run can start from it."""
    export(load(run / "run.yaml"), run, tmp_path / "hf")
    assert export(load(run / "run.yaml"), run, tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32"
    tuned = recipe_of(llama).model()
    tuned.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    tokens = tokens_of(recipe_of(llama, files=str(text), suffix=".txt"))
    ours = logits(tuned, tokens[:4].long())
    for dtype in ("auto", torch.float32):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=dtype)
        assert torch.equal(logits(theirs, tokens[:4].long()), ours)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert words(TEXT)["input_ids"] == transformers.AutoTokenizer.from_pretrained(llama)(TEXT)["input_ids"]
    assert (tmp_path / "hf" / "generation_config.json").is_file()
    again = recipe_of(tmp_path / "hf", files=str(text), suffix=".txt")
    assert torch.equal(tokens_of(again), tokens)
    assert torch.equal(logits(again.model(), tokens[:4].long()), ours)


def test_a_model_of_bytes_goes_out_with_a_tokenizer_of_bytes(text: Path, tmp_path: Path) -> None:
    overrides = ["n_layer=1", "n_embd=16", "n_head=2", "n_positions=16"]
    run = trained(tmp_path, {"kind": "gpt2", "overrides": overrides, "files": str(text), "suffix": ".txt"})
    export(load(run / "run.yaml"), run, tmp_path / "hf")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    every = bytes(range(128)) + "é€𝄞\u00ad".encode()
    assert words(every.decode())["input_ids"] == list(every)
    assert words.decode(list(every)) == every.decode()
    again = recipe_of(tmp_path / "hf", files=str(text), suffix=".txt")
    rows = tokens_of(again)
    assert bytes(rows[0].numpy().astype(np.uint8)) in text.read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):  # as an export of an earlier version
        (tmp_path / "hf" / name).unlink()
    assert torch.equal(tokens_of(recipe_of(tmp_path / "hf", files=str(text), suffix=".txt", tokenizer="bytes")), rows)


def broken(llama: Path, how: str, to: Path) -> Path:
    """A copy of the folder in which something is wrong."""
    shutil.copytree(llama, to)
    if how == "no tokenizer":
        for file in to.glob("token*"):
            file.unlink()
    elif how in ("gpt2", "pickle"):
        shutil.rmtree(to)
        sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2}
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2", **sizes))
        model.save_pretrained(to)
        if how == "pickle":
            torch.save(load_file(to / "model.safetensors"), to / "pytorch_model.bin")
            (to / "model.safetensors").unlink()
    elif how == "small":
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    else:
        shard = sorted(to.glob("model-*.safetensors"))[0]
        if how == "no shard":
            shard.unlink()
        elif how == "cut":
            shard.write_bytes(shard.read_bytes()[:200])
        elif how == "lacking":
            whole = {n: t for file in to.glob("model-*.safetensors") for n, t in load_file(file).items() if "layers.1" not in n}
            for file in to.glob("model*"):
                file.unlink()
            save_file(whole, to / "model.safetensors", metadata={"format": "pt"})
        elif how == "nothing":
            for file in to.glob("model*"):
                file.unlink()
    return to


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no tokenizer", "recipe.folder: {at} holds no tokenizer; give recipe.tokenizer"),
        ("gpt2", "recipe.folder: {at} holds no tokenizer; give recipe.tokenizer"),
        ("small", "recipe.tokenizer: gives the token "),
        ("pickle", "recipe.folder: {at} holds pytorch_model.bin and no model.safetensors"),
        ("no shard", "recipe.folder: the weights in {at} cannot be read: "),
        ("cut", "recipe.folder: the weights in {at} cannot be read: "),
        ("lacking", "recipe.folder: {at} lacks 9 weights of LlamaForCausalLM, such as model.layers.1."),
        ("nothing", "recipe.folder: {at} holds no model.safetensors"),
    ],
)
def test_what_a_folder_lacks_is_one_line(llama: Path, text: Path, tmp_path: Path, how: str, said: str) -> None:
    folder = broken(llama, how, tmp_path / "folder")
    knobs = {"files": str(text), "suffix": ".txt"} | ({"tokenizer": "bytes"} if how == "pickle" else {})
    recipe = recipe_of(folder, **knobs)
    with pytest.raises(UserError) as caught:
        _ = recipe.data("train"), recipe.model()
    assert str(caught.value).startswith(said.format(at=repr(str(folder))))
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_pickle_alone_ends_the_command_before_training(
    llama: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = broken(llama, "pickle", tmp_path / "folder")
    recipe = {"use": "causal_lm", "folder": str(folder), "tokenizer": "bytes", "context": 16, "files": str(text), "suffix": ".txt"}
    tree = {"recipe": recipe, "batch": {"reference": 8, "total": 8}, "optim": {"lr": 0.1}, "schedule": {"samples": 80}}
    (tmp_path / "run.yaml").write_text(json.dumps(tree | {"watch": {"wandb": "off"}, "run": {"dir": str(tmp_path / "run")}}))
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    said = capfd.readouterr().err
    assert "save_pretrained('NEW')" in said
    assert "Traceback" not in said


def test_without_transformers_it_is_one_line(
    run: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 2
    assert "recipe.use: this model needs transformers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="this model needs transformers"):
        recipe_of(llama).data("train")
    assert main(["export", str(run), "--out", str(tmp_path / "model.safetensors")]) == 0, "a file of weights needs none"


def test_the_widest_dtype_is_named_wherever_one_is() -> None:
    assert widest({"a": torch.zeros(1, dtype=torch.bfloat16), "b": torch.zeros(1, dtype=torch.float16)}) == torch.float32
    assert widest({"a": torch.zeros(1, dtype=torch.bfloat16), "ids": torch.zeros(1, dtype=torch.int64)}) == torch.bfloat16
    settings = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "vocab_size": 3}, "n": None}
    assert with_dtype(settings, "float32") == {
        "torch_dtype": "float32",
        "text_config": {"dtype": "float32", "vocab_size": 3},
        "n": None,
    }
