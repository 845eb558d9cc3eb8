"""What a run is called in W&B: by the run file, by W&B's own variables, or as we call it."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.schema import WatchConfig
from harness.watch.wandb_mode import requested_mode
from harness.watch.wandb_names import run_names

FOLDER = Path("runs/digits-1")
VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "lab",
    "WANDB_NAME": "big",
    "WANDB_RUN_GROUP": "seeds",
    "WANDB_JOB_TYPE": "ablation",
    "WANDB_TAGS": "gpu, bf16",
    "WANDB_NOTES": "second try",
    "WANDB_RUN_ID": "k2.x-1",
    "WANDB_DIR": "/scratch",
}
OF_FILE: dict[str, Any] = {
    "project": "ours",
    "entity": "team",
    "name": "small",
    "group": "lrs",
    "job_type": "debug",
    "tags": ("cpu",),
    "notes": "first try",
}


def names(environ: dict[str, str], **watch: Any) -> dict[str, Any]:
    """All names of a run."""
    return vars(run_names(WatchConfig(**watch), environ, FOLDER))


def test_without_a_word_the_run_is_called_as_its_folder() -> None:
    found = names(dict.fromkeys(VARIABLES, ""))
    assert found == names({})
    assert (found["project"], found["name"], found["job_type"], found["dir"]) == ("widebatch", "digits-1", "train", FOLDER)
    assert not any(found[name] for name in ("entity", "group", "tags", "notes", "id"))


def test_w_and_b_s_own_variables_are_honoured() -> None:
    assert names(VARIABLES) == {
        "project": "theirs",
        "entity": "lab",
        "name": "big",
        "group": "seeds",
        "job_type": "ablation",
        "tags": ("gpu", "bf16"),
        "notes": "second try",
        "id": "k2.x-1",
        "dir": Path("/scratch"),
    }


def test_the_run_file_wins_over_variables() -> None:
    assert names(VARIABLES, **OF_FILE) == OF_FILE | {"id": "k2.x-1", "dir": Path("/scratch")}


def test_under_an_agent_the_sweep_says_where_the_run_belongs() -> None:
    """The rest is the run file's; the agent sets WANDB_DIR to where it was started, which is no wish of the user's."""
    found = names(VARIABLES | {"WANDB_SWEEP_ID": "s1"}, **OF_FILE)
    assert found == OF_FILE | {"project": "theirs", "entity": "lab", "id": "k2.x-1", "dir": FOLDER}
    assert requested_mode(None, {"WANDB_SWEEP_ID": "s1"}) == ("online", "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_RUN_ID", "a/b"), ("WANDB_RUN_ID", "x" * 65), ("WANDB_PROJECT", "a/b"), ("WANDB_TAGS", "x" * 65)],
)
def test_a_variable_that_w_and_b_could_not_take_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(UserError) as refused:
        names({variable: value})
    assert refused.value.setting == variable
