"""widebatch init RECIPE: a first run file for a recipe, with the settings to look at first and what each means."""

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.config.errors import UserError
from harness.config.field_docs import field_docs
from harness.config.flags import Parser, add_settings, parse
from harness.config.loader import load
from harness.config.schema import EXCLUSIVE, RecipeConfig
from harness.config.setting_values import setting_values
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path, write_out

SHOWN = (
    *("recipe.samples", "batch.reference", "batch.per_gpu", "batch.micro"),
    *("optim.name", "optim.lr", "optim.momentum", "optim.weight_decay", "optim.clip"),
    *("scaling.rule", "scaling.warmup_epochs", "schedule.epochs", "schedule.shape", "precision", "backend.name"),
    *("eval.every_epochs", "eval.metric", "checkpoint.every_epochs", "checkpoint.keep", "guard.policy"),
    *("watch.wandb", "watch.project", "run.seed"),
)
"""The settings that a new run file shows, as they are given or as comments."""
NEEDED = ("batch.reference", "optim.lr", "schedule.epochs")
WIDTH = 110


def main(argv: Sequence[str]) -> int:
    """Write the run file. Raises UserError."""
    parser = Parser(prog="widebatch init", description=COMMANDS["init"], allow_abbrev=False)
    parser.add_argument("recipe", metavar="RECIPE", help="file.py:Class, package.module:Class, or a built-in recipe")
    parser.add_argument(
        "--out", type=local_path("--out"), metavar="FILE", help="the run file to write (default: the recipe's name with .yaml)"
    )
    add_settings(parser)
    args, given = parse(parser, argv)
    out = args.out or Path(f"{args.recipe.partition(':')[0].removesuffix('.py').rpartition('.')[2]}.yaml")
    _check(given, out)
    settings = {"batch.per_gpu": given["batch.reference"]} if not _has(given, "batch.per_gpu") else {}
    text = _text(args.recipe, settings | given, out.parent)
    write_out(out, text)
    try:
        load(out, {})
    except UserError:
        out.unlink()
        raise
    echo(f"{out}: look at it, then: widebatch plan {out} --gpus 8")
    return 0


def _check(given: Mapping[str, str], out: Path) -> None:
    """Raises UserError where the numbers that only the user knows are missing, or the file is there."""
    missing = [name for name in NEEDED if not _has(given, name)]
    if missing:
        examples = {"batch.reference": "32", "optim.lr": "0.1", "schedule.epochs": "10"}
        add = " ".join(f"--{name} {examples[name]}" for name in missing)
        raise UserError("init", f"needs {' and '.join(missing)}", f"add what the recipe was tuned with, such as {add}")
    if out.exists():
        raise UserError("--out", f"{out} is there", "remove it, or give another file by --out")


def _has(given: Mapping[str, str], name: str) -> bool:
    """Whether a setting, or one that excludes it, is given."""
    group = next((group for group in EXCLUSIVE if name in group), (name,))
    return any(one in given for one in group)


def _text(recipe: str, given: Mapping[str, str], folder: Path) -> str:
    """The run file: what is given, and beside it what may be, section by section."""
    values, docs = setting_values(), field_docs()
    names = [*SHOWN, *(name for name in given if name not in SHOWN)]
    sections: dict[str, list[str]] = {"recipe": [f"  use: {json.dumps(recipe)}", *_fields(recipe, given, folder)]}
    for name in names:
        section, _, key = name.rpartition(".")
        if section == "recipe" and name not in docs:  # a field of the recipe itself
            continue
        lines = sections.setdefault(section or key, [])
        indent = "  " if section else ""
        lines += [f"{indent}# {line}" for line in textwrap.wrap(f"{' '.join(docs[name].split())} {values[name]}", WIDTH)]
        lines.append(f"{indent}{key}: {given[name]}" if name in given else f"{indent}# {key}:")
    head = "# The settings to look at first; widebatch train --help-all explains every one.\n"
    return head + "".join(
        "\n" + ("" if name in docs else f"{name}:\n") + "\n".join(lines) + "\n" for name, lines in sections.items()
    )


def _fields(recipe: str, given: Mapping[str, str], folder: Path) -> Iterator[str]:
    """The recipe's own fields: as given, or as comments with their defaults."""
    from harness.recipes.base import load_recipe  # imports torch

    use = str((folder / recipe).resolve()) if recipe.partition(":")[0].endswith(".py") else recipe
    for field in dataclasses.fields(load_recipe(RecipeConfig(use=use))):  # type: ignore[arg-type]
        name = field.name.removesuffix("_")
        if f"recipe.{name}" in given:
            yield f"  {name}: {given[f'recipe.{name}']}"
        else:
            yield f"  # {name}: {json.dumps(field.default)}"
