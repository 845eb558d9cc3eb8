"""Pictures of what people see, taken by a browser, to be looked at. `python -m tests.support.pictures [FOLDER]`.

Without FOLDER the picture in the root README is made anew; with it, pictures in FOLDER of the report page (narrow, middle, wide;
light and dark; of six runs, one of which diverged; as a PDF) and of the terminal (80 and 140 columns, during a run and after it).
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.support.processes import ROOT, environ

PICTURE = ROOT / ".github" / "report.png"
CONFIG = ROOT / "configs" / "digits.yaml"
TWO = (f"train {CONFIG} --run.dir reference", f"train {CONFIG} --run.dir larger --batch.total 128 --against reference")
SIX = [f"train {CONFIG} --run.dir k{k} --batch.total {32 * k}" for k in (2, 8, 16)] + [
    f"train {CONFIG} --run.dir hot --batch.total 128 --optim.lr 4"
]
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
STYLE = "<style>body{{margin:14px;background:#171b22;color:#e6eaf0}} pre{{font:13px/1.35 'DejaVu Sans Mono',monospace}}</style>"


def main() -> int:
    """Make them; returns the exit status."""
    if shutil.which("chromium") is None:
        print("chromium is not installed: no pictures")
        return 2
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command in TWO:
            widebatch(folder, command)
        two = report(folder, "reference", "larger")
        if out is None:
            shoot(two, PICTURE, 1200, 1000)
            return 0
        out.mkdir(parents=True, exist_ok=True)
        for command in SIX:
            widebatch(folder, command)
        pages(two, report(folder, "reference", "larger", "k2", "k8", "k16", "hot"), out)
        for columns in (80, 140):
            terminals(folder, columns, out)
    return 0


def widebatch(folder: Path, command: str) -> None:
    """Run it; one that diverges ends with a status of its own."""
    argv = [sys.executable, "-m", "launch", *command.split()]
    subprocess.run(argv, cwd=folder, env=environ(), check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def report(folder: Path, *runs: str) -> Path:
    """The page of these runs."""
    page = folder / f"{len(runs)}.html"
    widebatch(folder, f"report {' '.join(runs)} --out {page}")
    return page


def pages(two: Path, six: Path, out: Path) -> None:
    """The report at every width, light and dark, and as a PDF."""
    for page, name in ((two, "two"), (six, "six")):
        for width, height in ((400, 7000), (900, 4000), (1600, 3600)):
            for look, flags in (("light", ()), ("dark", DARK)):
                shoot(page, out / f"{name}-{width}-{look}.png", width, height, *flags)
        chromium(page, f"--print-to-pdf={out / name}.pdf", "--no-pdf-header-footer")


def terminals(folder: Path, columns: int, out: Path) -> None:
    """A short run on a terminal so wide: the screen half way, and at its end."""
    said = on_a_terminal(folder, f"train {CONFIG} --run.dir t{columns} --run.stop_after_steps 300", columns)
    for name, text in (("during", said[: said.rindex("\r\x1b[2K")]), ("after", said)):
        console = Console(record=True, width=columns, file=StringIO())
        console.print(Text.from_ansi(screen(text)))
        page = folder / f"{columns}-{name}.html"
        page.write_text(console.export_html(inline_styles=True, code_format=STYLE + "<pre>{code}</pre>"), encoding="utf-8")
        shoot(page, out / f"terminal-{columns}-{name}.png", 8 * columns + 40, 620)


def on_a_terminal(folder: Path, command: str, columns: int) -> str:
    """All that a command writes to a terminal."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in environ().items() if name != "NO_COLOR"}
    env |= {"COLUMNS": str(columns), "LINES": "50", "TERM": "xterm-256color"}
    argv = [sys.executable, "-m", "launch", *command.split()]
    child = subprocess.Popen(argv, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = bytearray()
    with suppress(OSError):  # so a terminal ends
        while part := os.read(ours, 1 << 16):
            said += part
    child.wait()
    os.close(ours)
    return said.decode(errors="replace")


def screen(said: str) -> str:
    """What is on the terminal after that: of cursor movements those that rich's live line uses."""
    lines, row = [""], 0
    for part in re.findall(r"\r?\n|\r|\x1b\[2K|\x1b\[\d*A|\x1b\[\?\d+[hl]|\x1b\[[\d;]*m|[^\r\n\x1b]+", said):
        if part.endswith("\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif part.endswith("A"):
            row = max(row - int(part[2:-1] or 1), 0)
        elif part in ("\r", "\x1b[2K"):
            lines[row] = ""
        elif not part.startswith("\x1b[?"):
            lines[row] += part
    return "\n".join(lines)


def shoot(page: Path, picture: Path, width: int, height: int, *flags: str) -> None:
    """Take a picture of a page."""
    chromium(page, "--hide-scrollbars", f"--window-size={width},{height}", f"--screenshot={picture}", *flags)
    print(f"{picture} has {picture.stat().st_size // 1024} KiB")


def chromium(page: Path, *flags: str) -> None:
    """Open a page in a browser of its own."""
    argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}", *flags]
    subprocess.run([*argv, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
