"""The command that resumes a run as it was started: on as many processes, as the batch may depend on their number."""

from pathlib import Path
from shlex import quote

from harness.config.run_folder import RunFolder
from harness.plan.plan import Plan


def resume_command(folder: str, plan: Plan, device: str) -> str:
    """The command to type; `device` is a rank's, such as cpu or cuda:0."""
    run = quote(str(RunFolder(Path(folder)).run_file))
    if plan.processes == 1:
        return f"widebatch train {run}" + (f" --simulate-world {plan.world_size}" if plan.world_size > 1 else "")
    ranks = f"--gpus 0 --procs {plan.processes}" if device.startswith("cpu") else f"--gpus {plan.processes}"
    return f"widebatch launch {run} {ranks}" + (f" --nodes {plan.nodes}" if plan.nodes > 1 else "")


def after_renaming(command: str, folder: Path, now: Path) -> str:
    """A command that resumes the run in `folder`, which is at `now`: the run file in it still names the old path."""
    if folder == now:
        return command
    old, new = (quote(str(RunFolder(path).run_file)) for path in (folder, now))
    return f"{command.replace(old, new, 1)} --run.dir {quote(str(now))}"
