"""The run file as a JSON schema, so that an editor completes and checks it while it is written."""

from typing import Any

import msgspec

from harness.config.amounts import PATTERN
from harness.config.field_docs import field_docs
from harness.config.schema import Config

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a run file, with the docstring of each setting as its description.

    As strict as the loader on names, types and bounds of a single setting; how settings go together is checked by the plan.
    """
    made = msgspec.json.schema(Config)
    kinds: dict[str, Any] = made["$defs"]
    top = kinds.pop("Config")
    for section, part in top["properties"].items():
        name = part.get("$ref", "").rpartition("/")[2]
        if name:
            _close(kinds[name], section)
    for path, text in field_docs().items():
        section, _, setting = path.partition(".")
        if setting != "knobs":
            owner = top if not setting else kinds[top["properties"][section]["$ref"].rpartition("/")[2]]
            owner["properties"][setting or section]["description"] = " ".join(text.split())
    _offer_mapping(kinds)
    recipe = kinds["RecipeConfig"]
    recipe["additionalProperties"] = recipe["properties"].pop("knobs")["additionalProperties"]
    for kind in kinds.values():
        _allow_text(kind)
    return {"$schema": DRAFT, "title": "widebatch run file", **top, "additionalProperties": False, "$defs": kinds}


def _close(kind: dict[str, Any], section: str) -> None:
    """Refuse unknown settings in a section."""
    kind["title"] = section
    kind["additionalProperties"] = False


def _offer_mapping(kinds: dict[str, Any]) -> None:
    """Let batch.reference hold the section reference too: {batch: 512, tokens: 10B}."""
    known, more = kinds["BatchConfig"]["properties"]["reference"], kinds["ReferenceConfig"]["properties"]
    plain = {name: known.pop(name) for name in ("type", "minimum", "pattern")}
    mapping = {"type": "object", "properties": {"batch": plain, **more}, "required": ["batch"], "additionalProperties": False}
    known["anyOf"] = [plain, mapping]


def _allow_text(part: Any) -> None:
    """Let amounts be written as text of their pattern, such as 0.5M."""
    if isinstance(part, dict):
        if part.get("pattern") == PATTERN and isinstance(part["type"], str):  # a part may be in two places
            part["type"] = [part["type"], "string"]
        for inner in part.values():
            _allow_text(inner)
    elif isinstance(part, list):
        for inner in part:
            _allow_text(inner)
