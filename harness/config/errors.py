"""The one exception for mistakes of the user: a line that names the setting, its value and the remedy."""

import re

_SCHEME = r"(\b[A-Za-z][\w+.-]+:/+)"
"""Matches URLs, also with one slash after the colon: so a URL looks after it was parsed as a path."""
_USERINFO = _SCHEME + r"[^\s'\"]*(?:@|%40)"
_QUERY = _SCHEME + r"([^?#\s'\"]*)([?#])[^\s'\"]+"
KEY_FORMS = (
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|(AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|nvapi-[\w-]{20,}|wandb_v\d_\w{20,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{50,}|[sr]k_(live|test)_[A-Za-z0-9]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|dapi[0-9a-f]{32}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}|AccountKey=[\w+/]{40,}=*"
    r"|(?i:aws_secret_access_key)\s*[=:]\s*[\w+/]{40})(?![A-Za-z0-9])|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""What services write their keys as: Hugging Face, OpenAI, AWS, GitHub, GitLab, Slack, Google, NVIDIA, W&B, npm, PyPI, Stripe,
SendGrid, Databricks, Azure; tokens in JSON (JWT) and keys in PEM. As text: compiling costs `widebatch --help` a tenth."""


class UserError(Exception):
    """A mistake in a run file, on the command line or in a recipe. Commands print it as one line and exit with status 2.

    `setting` is the dotted path (`batch.total`), `problem` says what is wrong with which value, `remedy` what to do.
    What may be a credential, in a URL or by its form, is not repeated, nor anything that would steer a terminal, in any of them.
    """

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        self.setting, self.problem, self.remedy = (printable(redacted(text)) for text in (setting, problem, remedy))
        super().__init__(" ".join(f"{self.setting}: {self.problem}; {self.remedy}".split()))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        """Makes the error picklable."""
        return UserError, (self.setting, self.problem, self.remedy)


def nearest(name: str, known: list[str], cutoff: float = 0.6) -> str | None:
    """The known name most like `name`, whatever its case; None if none is like it (difflib's ratio is under `cutoff`)."""
    from difflib import get_close_matches  # imported only where a mistake is reported

    by_lower = {k.lower(): k for k in reversed(known)}
    near = get_close_matches(name.lower(), list(by_lower), n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None


def did_you_mean(name: str, known: list[str]) -> str:
    """The remedy for an unknown name: the nearest known one, or the list of all."""
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(known)}"


def redacted(text: str) -> str:
    """`text` with what may be a credential replaced: `s3://***@bucket/run?***`, and keys by their form."""
    text = re.sub(KEY_FORMS, "***", text)
    return re.sub(_QUERY, r"\1\2\3***", re.sub(_USERINFO, r"\1***@", text)) if ":/" in text else text


def printable(text: str) -> str:
    r"""`text` as a terminal may show it: what would steer it, as an escape sequence does, becomes text (`\u001b[2J`)."""
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else f"\\u{ord(c):04x}" for c in line)
