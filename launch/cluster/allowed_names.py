"""Names that users give and that reach a shell, a path or another tool's file: each matched whole against what is allowed.

Quoting is not enough: a newline in a job name ends the `#SBATCH` line, and what follows is shell.
"""

from pathlib import Path

from harness.config.allowed_names import checked

WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""A name of a job, network interface, account ..."""
WORDS = rf"{WORD}(,{WORD})*"
"""One or several names, as Slurm takes partitions."""
TIME = r"[0-9]{1,6}(:[0-5]?[0-9]){0,2}|[0-9]{1,4}-[0-9]{1,2}(:[0-5]?[0-9]){0,2}"
"""A length as Slurm writes it: minutes, [hours:]minutes:seconds, days-hours[:minutes[:seconds]]."""
PATH = r"/[A-Za-z0-9._/@+=,-]{0,4000}"
"""An absolute path without blanks, quotes and the patterns of any tool."""
HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]"
"""A host name, an IPv4 address, or an IPv6 address in brackets."""


def checked_path(setting: str, path: Path) -> str:
    """An absolute path as text. Raises UserError."""
    return checked(setting, str(path.absolute()), PATH, "give a path of letters, digits and . _ - + = @ , only")
