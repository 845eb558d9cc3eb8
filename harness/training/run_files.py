"""What a run writes into its folder as it starts: the resolved run file, the plan, and the seal of what they name."""

from dataclasses import replace
from pathlib import Path

from harness.config.schema import Config
from harness.plan.plan import Plan
from harness.plan.run_files import run_files
from harness.supervision.folder_seal import seal
from harness.supervision.safe_files import renew_own


def write_run_files(config: Config, planned: Plan, folder: Path) -> None:
    """Write the run's files into `folder`, which this process has locked. Raises UserError."""
    for name, text in run_files(_resolved(config, folder), planned).items():
        renew_own(folder / name, text)
    seal(folder, config)


def _resolved(config: Config, folder: Path) -> Config:
    """The run as it is repeated from any working directory, and to its end."""
    where = config.checkpoint.dir
    if where and "://" not in where:
        where = str(Path(where).resolve())
    begin = config.init_from and str(Path(config.init_from).resolve())
    return replace(
        config,
        init_from=begin,
        run=replace(config.run, dir=str(folder.resolve()), stop_after_steps=None),
        checkpoint=replace(config.checkpoint, dir=where),
    )
