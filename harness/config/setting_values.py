"""What each setting of the run file may be, and what it is by default, in short: for --help and configs/README.md."""

import json
from collections.abc import Iterator
from typing import Any

from harness.config.json_schema import json_schema


def setting_values() -> dict[str, str]:
    """By dotted name: `[ddp, fsdp, ...; default: ddp]`, without a default where a setting is unset or must be given. In ASCII."""
    return {name: f"[{_plain(allowed(field))}{_default(field, needed=needed)}]" for name, field, needed in _fields()}


def choices() -> dict[str, list[str]]:
    """The settings that take one of a few words, by dotted name, and those words."""
    words = {name: [word for one in field.get("anyOf", [field]) for word in _words(one)] for name, field, _ in _fields()}
    return {name: found for name, found in words.items() if found}


def _fields() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """(dotted name, JSON schema, whether it must be given) of each setting."""
    schema = json_schema()
    for section, part in schema["properties"].items():
        kind = schema["$defs"].get(part.get("$ref", "").rpartition("/")[2])
        if kind is None:
            yield section, part, section in schema.get("required", ())
            continue
        for name, field in kind["properties"].items():
            yield f"{section}.{name}", field, name in kind.get("required", ())


def _words(field: dict[str, Any]) -> list[str]:
    if field.get("type") == "boolean":
        return ["true", "false"]
    return [str(word) for word in field.get("enum", [field["const"]] if "const" in field else [])]


def _plain(values: str) -> str:
    """For a terminal: without Markdown, and without saying that a setting may be left out."""
    return values.replace("`", "").replace("≥", ">=").replace("≤", "<=").removesuffix(" or none")


def _default(field: dict[str, Any], *, needed: bool) -> str:
    """How a setting's default is told."""
    if needed:
        return "; must be given"
    value = field.get("default")
    return "" if value in (None, [], (), {}) else f"; default: {value if isinstance(value, str) else json.dumps(value)}"


def allowed(part: dict[str, Any]) -> str:
    """What a setting may be, in short: `part` is its JSON schema."""
    if "enum" in part:
        return ", ".join(f"`{v}`" for v in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(allowed(p) for p in part["anyOf"]))
    if part.get("type") == "array":
        return f"list of {allowed(part.get('items', {}))}" if part.get("items") else "list"
    if isinstance(part.get("type"), list):  # an amount
        return f"{allowed(part | {'type': part['type'][0]})} (`0.5M`)"
    kind = str(part.get("type", "any")).replace("null", "none").replace("object", "mapping")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    shown = [f"{sign} {part[key]:g}" for key, sign in bounds.items() if key in part and abs(part[key]) < 1e300]
    return f"{kind} {', '.join(shown)}".strip()
