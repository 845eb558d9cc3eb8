"""The picture in the root README: the report page of two runs of digits, taken by a browser. `python -m tests.support.picture`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.processes import ROOT, environ

PICTURE = ROOT / ".github" / "report.png"
RUNS = (
    "train {configs}/digits.yaml --run.dir reference",
    "train {configs}/digits.yaml --run.dir larger --batch.total 128 --against reference",
    "report reference larger --out report.html",
)


def main() -> None:
    """Train, make the page, and take its picture, 1,200 pixels wide. Needs chromium."""
    with tempfile.TemporaryDirectory() as folder:
        for command in RUNS:
            argv = [sys.executable, "-m", "launch", *command.format(configs=ROOT / "configs").split()]
            subprocess.run(argv, cwd=folder, env=environ(), check=True, stdout=subprocess.DEVNULL)
        shot = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1000", f"--screenshot={PICTURE}"]
        subprocess.run([*shot, (Path(folder) / "report.html").as_uri()], check=True, capture_output=True)
    print(f"{PICTURE} has {PICTURE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
