"""A causal language model of Hugging Face's transformers on files of token ids, which may be larger than memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from torch import Tensor, nn

from harness.config.amounts import amount
from harness.config.errors import UserError
from harness.config.schema import Count
from harness.data.feed import Data
from harness.data.joined import NAME, mixture
from harness.data.token_files import TokenFiles, token_paths, widest
from harness.recipes.base import Given, Split, Sum
from harness.recipes.hf_model import HuggingFaceModel
from harness.recipes.preview import token_preview
from harness.recipes.text import document_loss, next_token_loss


@dataclass(frozen=True)
class Tokens(HuggingFaceModel):
    """Trained on rows of context + 1 tokens out of .bin files (raw, llm.c's, Megatron-LM's with .idx) or .npy files."""

    data_: str | list[str] | None = None
    """Training files: a folder, a file, a pattern such as corpus/train*.bin, or several. With `weights`, NAME=FILES each."""
    weights: list[float] = ()  # type: ignore[assignment]
    """Mix the sources of `data` by these weights: of every number of samples each source has its share, to within one."""
    weights_then: list[str] = ()  # type: ignore[assignment]
    """Other weights from a number of samples on, as ["500k: 0.5, 0.5", "1M: 0.2, 0.8"]."""
    valid: str | list[str] | None = None
    """Validation files, in the same form; given as NAME=FILES, sets that are evaluated each by itself. Unset: no evaluation."""
    stride: Count | None = None
    """Tokens from the start of one row to that of the next, at most `context`. Unset: `context`, so that each is predicted once."""
    dtype: Literal["uint16", "uint32"] = "uint16"
    """The type of ids in a .bin that has neither a header nor an .idx or tokens.json beside it."""
    documents: Literal["joined", "masked"] = "joined"
    """masked: a token sees and is predicted from its own document alone, and positions begin at 0 with each. joined: the row."""
    eos: Annotated[int, Meta(ge=0)] | None = None
    """Documents masked: the id that ends a document. Unset: that of tokens.json, else documents are those of a Megatron-LM .idx."""

    def data(self, split: Split) -> Given:
        """Columns tokens int32 [n, context + 1] and length int64 [n], the true tokens in the row; masked: position too."""
        if split == "train":
            return self._training()
        if self.valid is None:
            return None
        sets = {name: self._opened(files, "recipe.valid") for name, files in _named(self.valid, "recipe.valid").items()}
        known = set(self._paths())
        common = [path for one in sets.values() for path in one.paths if path in known]
        if common:
            at = f"{common[0]} is among the files of recipe.data too"
            raise UserError("recipe.valid", at, "give each file to one of them, as train*.bin and val*.bin")
        return sets.get("", sets)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy in nats, summed over the tokens that are no padding."""
        return document_loss(model, batch) if "position" in batch else next_token_loss(model, batch)

    def preview(self, sample: dict[str, Tensor]) -> str:
        """The text, where there is a tokenizer; else ids."""
        return token_preview(sample, self._tokenizer())

    def hugging_face_files(self, out: Path) -> None:
        """See HuggingFaceModel.hugging_face_files; ids of an unknown tokenizer have none."""
        if self.tokenizer is not None or self.folder is not None:
            super().hugging_face_files(out)

    def _sized(self) -> dict[str, Any]:
        """The vocabulary size from the tokens.json beside the files; without one, the kind's own."""
        found = widest(self._paths())
        return {"vocab_size": found.vocabulary, "bos_token_id": None, "eos_token_id": found.eos} if found else {}

    def _training(self) -> Data:
        sources = {name: self._opened(files, "recipe.data") for name, files in self._sources().items()}
        if not self.weights and not self.weights_then and "" in sources:
            return sources[""]
        if len(sources) != len(self.weights) or "" in sources:
            at = f"are {len(self.weights)}, and recipe.data names {len(sources) if '' not in sources else 'no'} sources"
            remedy = 'give both alike, as data: ["web=web*.bin", "code=code*.bin"], weights: [0.7, 0.3]'
            raise UserError("recipe.weights", at, remedy)
        then = {at: dict(zip(sources, part, strict=True)) for at, part in _stages(self.weights_then, len(sources))}
        return mixture(sources, dict(zip(sources, self.weights, strict=True)), then)

    def _sources(self) -> dict[str, str | list[str]]:
        """The training files as given, by source. Raises UserError if they are not."""
        if not self.data_:
            raise UserError("recipe.data", "missing", 'give the files of tokens, such as recipe.data: "corpus/train*.bin"')
        return _named(self.data_, "recipe.data")

    def _paths(self) -> list[Path]:
        return [path for files in self._sources().values() for path in token_paths(files, "recipe.data")]

    def _opened(self, files: str | list[str], setting: str) -> TokenFiles:
        known = self._config().get_text_config().vocab_size
        return TokenFiles(
            files,
            self.context,
            stride=self.stride,
            dtype=self.dtype,
            vocabulary=known,
            documents=self.documents,
            eos=self.eos,
            setting=setting,
        )


def _stages(given: Sequence[str], sources: int) -> Iterator[tuple[int, list[float]]]:
    """["500k: 0.5, 0.5", ...] -> (samples, weights). Raises UserError."""
    for text in given:
        at, _, weights = text.partition(":")
        try:
            samples = amount("recipe.weights_then", at.strip()) if at.strip()[-1:].isalpha() else int(at)
            numbers = [float(part) for part in weights.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != sources:
            remedy = f'write "SAMPLES: W, W, ...", with a weight for each of the {sources} sources'
            raise UserError("recipe.weights_then", f"holds {text!r}", remedy)
        yield samples, numbers


def _named(given: str | list[str], setting: str) -> dict[str, str | list[str]]:
    """[NAME=FILES, ...] -> files by name; files without names are one set called "". Raises UserError if only some have one."""
    found: dict[str, str | list[str]] = {}
    for text in () if isinstance(given, str) else given:
        name, equals, files = text.partition("=")
        if equals and NAME.fullmatch(name):
            found[name] = files
    if found and len(found) < len(given):
        at = f"{', '.join(given)} are not all NAME=FILES, with a name each"
        raise UserError(setting, at, "name each set or none; for several files of one set give a folder or a pattern")
    return found or {"": given}
