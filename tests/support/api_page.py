"""build/docs: the page of the public names, from their docstrings: `python -m tests.support.api_page`. A warning is an error."""

import warnings
from pathlib import Path

import pdoc
import pdoc.render

import harness
from tests.support.processes import ROOT


def build(out: Path) -> Path:
    """Write the page into a folder; its path. What pdoc warns of, such as a type that it cannot read, is raised."""
    for name in harness.__all__:
        setattr(harness, name, getattr(harness, name))  # pdoc sees what has been imported
    pdoc.render.configure(docformat="markdown", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("harness", "!harness\\.", output_directory=out)
    return out / "harness.html"


if __name__ == "__main__":
    print(build(ROOT / "build" / "docs"))
