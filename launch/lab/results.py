"""What a lab command leaves in its folder: a record, a table, a plot, and a run file to use."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from harness.analysis.text_plot import Panel
from harness.config.loader import encode
from harness.config.run_folder import RUN_FILE
from harness.config.schema import Config
from harness.config.yaml_text import to_yaml
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import write_own


@final
@dataclass(frozen=True)
class LabResults:
    """Writes the results of the command `name` into the folder `out`, which exists."""

    out: Path
    name: str

    def record(self, tree: Mapping[str, Any], file: str = "") -> Path:
        """Write a JSON record, NAME.json if no file is named; returns where it is."""
        path = self.out / (file or f"{self.name}.json")
        write_own(path, json.dumps(tree, indent=1) + "\n")
        return path

    def table(self, text: str) -> None:
        """Write table.txt."""
        write_own(self.out / "table.txt", text + "\n")

    def plot(self, panels: Sequence[Panel]) -> str:
        """Draw NAME.svg and .png; returns the text to print, which is the plot itself where matplotlib is missing."""
        from harness.watch.plot_file import save

        return save(panels, self.out / self.name)

    def run_file(self, config: Config, why: str, *, note: str = "", folder: Path | None = None) -> None:
        """Write the run file to use, with the reason on top, and print where it is, then the note.

        `folder`: the run folder that it resumes; without one it begins a new run.
        """
        write_own(self.out / RUN_FILE, run_file(config, why, folder))
        echo(f"run file: {self.out / RUN_FILE}{note}")


def run_file(config: Config, why: str, folder: Path | None = None) -> str:
    """The text of a run file with the reason on top: for a new run, or to resume the one in `folder`."""
    placed = replace(config, run=replace(config.run, dir=None if folder is None else str(folder)))
    return f"# {why}\n" + to_yaml(encode(placed))
