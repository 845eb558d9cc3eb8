"""Conversations in a JSON lines file as token ids, and which of them are to be learnt: what the assistant says, to its end.

A line is {"messages": [{"role": ..., "content": ...}, ...]}, or {"prompt": ..., "completion": ...}, both texts or both messages.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from harness.config.errors import UserError
from harness.data.open_dataset import is_table, read_samples

SETTING = "recipe.files"
_FORMS = 'write {"messages": [{"role": "user", "content": "..."}, ...]} or {"prompt": "...", "completion": "..."} on each line'


@final
@dataclass(frozen=True)
class ChatRow:
    """One conversation: its tokens, and for each whether it is to be learnt."""

    line: int
    ids: list[int]
    learn: list[bool]


def read_rows(file: str, words: Any) -> Iterator[ChatRow]:
    """The conversations of a file of JSON lines, of .parquet files or of a folder of save_to_disk, by the tokenizer `words` and
    its chat template. Raises UserError that names the line or row.
    """
    if is_table(file):
        for number, tree in read_samples(file):
            yield _conversation(f"{file} row {number}", number, tree, words)
        return
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, text in enumerate(lines, 1):
                if text.strip():
                    yield _row(f"{file} line {number}", number, text, words)
    except OSError as e:
        raise UserError(SETTING, f"{file!r} cannot be read: {e.strerror}", "give a file of JSON lines") from e
    except UnicodeDecodeError as e:
        raise UserError(SETTING, f"{file!r} is not UTF-8", "save it so") from e


def _row(where: str, number: int, text: str, words: Any) -> ChatRow:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(SETTING, f"{where} is no JSON: {str(e)[:80]}", _FORMS) from e
    return _conversation(where, number, tree, words)


def _conversation(where: str, number: int, tree: Any, words: Any) -> ChatRow:
    found = tree if isinstance(tree, dict) else {}
    prompt, completion = found.get("prompt"), found.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        ids, learn = _plain(prompt, completion, words)
    elif isinstance(prompt, list) and isinstance(completion, list):
        ids, learn = _messages(where, [*prompt, *completion], words, first=len(prompt))
    elif isinstance(found.get("messages"), list):
        ids, learn = _messages(where, found["messages"], words)
    else:
        raise UserError(SETTING, f"{where} has neither messages nor a prompt with its completion", _FORMS)
    if not any(learn[1:]):
        raise UserError(SETTING, f"{where} has nothing to learn: no message of the assistant's", "leave the line out")
    return ChatRow(number, ids, learn)


def _plain(prompt: str, completion: str, words: Any) -> tuple[list[int], list[bool]]:
    """A prompt and its completion as they are written, and the end."""
    before: list[int] = words(prompt)["input_ids"]
    after: list[int] = words(completion, add_special_tokens=False)["input_ids"]
    if before and before[-1] == words.eos_token_id:  # some tokenizers end every text
        before = before[:-1]
    after = after if words.eos_token_id is None else [*after, words.eos_token_id]
    return before + after, [False] * len(before) + [True] * len(after)


def _messages(where: str, messages: list[Any], words: Any, first: int = 0) -> tuple[list[int], list[bool]]:
    """A conversation by the chat template. Learnt is what the assistant's messages, from the one at `first` on, add to it."""
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise UserError(SETTING, f"{where} has a message without a role and a text as content", _FORMS)
    whole = _ids(where, messages, words)
    learn = [False] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number < first:
            continue
        before, after = _ids(where, messages[:number], words, ask=True), _ids(where, messages[: number + 1], words)
        if after[: len(before)] != before or whole[: len(after)] != after:
            at = f"{where}: the chat template renders the messages before number {number + 1} differently when the rest follows"
            raise UserError(SETTING, at, "give prompt and completion as texts, or another recipe.tokenizer")
        learn[len(before) : len(after)] = [True] * (len(after) - len(before))
    return whole, learn


def _ids(where: str, messages: list[Any], words: Any, *, ask: bool = False) -> list[int]:
    """Token ids of messages; `ask`: and of what stands before the assistant's answer."""
    if not messages:
        return []
    try:
        found: list[int] = words.apply_chat_template(messages, add_generation_prompt=ask, tokenize=True, return_dict=False)
    except Exception as e:  # a template is a program that reports errors by raising
        lines = str(e).splitlines() or [type(e).__name__]
        raise UserError(SETTING, f"{where}: the chat template fails: {lines[0]}", "repair the line, or the template") from e
    return found
