"""Credentials in a run file, by their name or their form: they are refused, as the run file is copied into the run folder.

A recipe's knobs have any names, and some only look like secrets: pad_token, tokens, token_budget, sort_key. So a name counts by its
last words, and only where its value is text. Messages show no value.
"""

import re

from harness.config.errors import KEY_FORMS, UserError

_NAMES = re.compile(
    r"(.*_)?(pass(word|wd|phrase)|pwd|secrets?|credentials?|api_?keys?|(access|secret|private|account|auth|license)_?key)"
    r"|(.*_)?(access|api|app|auth|bearer|client|git(hub|lab)?|hf|hub|hugging_?face|jwt|personal|refresh|session|wandb)_?token",
)
"""Matches names (in lower case, with _ between words) of settings whose text is a credential."""
_LIKE_A_TOKEN = re.compile(r"(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-)\S*|(?=\S*[0-9])(?=\S*[A-Za-z])[\w.+/=-]{16,}")
"""What the value of a setting named only `token` or `key` looks like if it is a credential; <pad> and byte-level do not."""


def check_no_credential(setting: str, text: str) -> None:
    """Raise UserError where `text`, which the run file gives to `setting`, is a credential by its form or by the setting's name."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-\s]", "_", setting.rpartition(".")[2]).lower()
    alone = words in ("token", "key") and _LIKE_A_TOKEN.fullmatch(text.strip())
    if not (re.search(KEY_FORMS, text) or alone or (text and _NAMES.fullmatch(words))):
        return
    what = f"looks like a credential ({len(text)} characters), which would be written to the run folder"
    variable = re.sub(r"\W", "", words).upper() or "TOKEN"
    remedy = f'leave it out, and let the recipe read it from the environment: os.environ["{variable}"]'
    raise UserError(setting, what, f"{remedy}; a setting that is no secret needs another name")
