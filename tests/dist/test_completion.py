"""Shells complete commands, flags and values by the script of `widebatch completion`: in real shells, where they are installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environ

CASES = (
    (["sw"], "sweep"),
    (["launch", "run.yaml", "--backend.na"], "--backend.name"),
    (["launch", "run.yaml", "--dry"], "--dry-run"),
    (["train", "run.yaml", "--backend.name", "zero3"], "zero3"),
    (["report", "--js"], "--json"),
    (["plan", "dig"], "digits.yaml"),
)


def asked(shell: str, words: list[str]) -> list[str]:
    """The shell's program and arguments that print what it offers for the last of `words`."""
    line = " ".join(["widebatch", *words])
    if shell == "fish":
        return ["fish", "--no-config", "-c", f"widebatch completion fish | source; complete -C '{line}'"]
    code = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _widebatch; printf "%s\\n" "${{COMPREPLY[@]}}"'
    if shell == "zsh":  # its completion proper needs a terminal, calls the function like this, and takes what begins with the word
        return ["zsh", "-f", "-c", f'eval "$(widebatch completion zsh)"; emulate sh; {code}']
    return ["bash", "--norc", "-c", f'eval "$(widebatch completion bash)"; {code}']


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_offers_commands_flags_values_and_files(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "digits.yaml").write_bytes((ROOT / "configs" / "digits.yaml").read_bytes())
    path = f"{Path(sys.executable).parent}:{environ()['PATH']}"
    for words, wanted in CASES:
        done = subprocess.run(
            asked(shell, words), cwd=tmp_path, env=environ() | {"PATH": path, "HOME": str(tmp_path)}, capture_output=True, text=True
        )
        offered = [line.split("\t")[0] for line in done.stdout.splitlines()]
        if shell == "zsh":
            offered = [one for one in offered if one.startswith(words[-1])]
        assert offered == [wanted], (words, done.stdout[:500], done.stderr)
