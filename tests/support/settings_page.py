"""configs/README.md, every setting of a run file, from the schema: `python -m tests.support.settings_page` writes it."""

import json
from pathlib import Path
from typing import Any

from harness.config.json_schema import json_schema
from harness.config.setting_values import allowed
from tests.support.processes import ROOT

PAGE = ROOT / "configs" / "README.md"
HEAD = """# Run files, and every setting

`digits.yaml` is the one to start with. Each file here says at its top where its numbers come from, its command, and what to expect.
Each setting below is a flag as well: `--batch.total 4096`, or `batch.total=4096`. An editor that knows YAML completes and checks a
run file whose first line is `# yaml-language-server: $schema=run.schema.json` (`widebatch schema` prints the schema). This page is
made from the schema.
"""


def rows(section: str, part: dict[str, Any]) -> list[str]:
    """A line of the table for each setting of a section."""
    found = []
    for name, field in part["properties"].items():
        default = "required" if name in part.get("required", ()) else json.dumps(field["default"]) if "default" in field else ""
        meaning = " ".join(field.get("description", "").split())
        cells = (f"`{section}.{name}`" if section else f"`{name}`", allowed(field), default.replace("null", ""), meaning)
        found.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return found


def page() -> str:
    """The whole page."""
    schema = json_schema()
    kinds, text, alone = schema["$defs"], HEAD, dict[str, Any]()
    for section, part in schema["properties"].items():
        kind = part.get("$ref", "").rpartition("/")[2] or next(
            (p["$ref"].rpartition("/")[2] for p in part.get("anyOf", ()) if "$ref" in p), ""
        )
        if not kind:
            alone[section] = part
            continue
        about = " ".join(kinds[kind].get("description", "").split())
        head = ["", f"## {section}", "", about, "", "| setting | values | default | meaning |", "|---|---|---|---|"]
        text += "\n".join(head) + "\n" + "\n".join(rows(section, kinds[kind])) + "\n"
    head = ["", "## Beside the sections", "", "| setting | values | default | meaning |", "|---|---|---|---|"]
    return text + "\n".join(head) + "\n" + "\n".join(rows("", {"properties": alone})) + "\n"


def main(place: Path = PAGE) -> None:
    """Write the page."""
    place.write_text(page())


if __name__ == "__main__":
    main()
