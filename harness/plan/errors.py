"""The one exception for mistakes of the user: a line that names the setting, its value and the remedy."""

from difflib import get_close_matches


class UserError(Exception):
    """A mistake in a run file, on the command line or in a recipe. Faces print it as one line and exit with status 2.

    `setting` is the dotted path (`batch.total`), `problem` says what is wrong with which value, `remedy` what to do.
    """

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        self.setting = setting
        self.problem = problem
        self.remedy = remedy
        super().__init__(" ".join(f"{setting}: {problem}; {remedy}".split()))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        """So that it goes from one process to another."""
        return UserError, (self.setting, self.problem, self.remedy)


def did_you_mean(name: str, known: list[str]) -> str:
    """The remedy for an unknown name: the nearest known one, or the list of all."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
