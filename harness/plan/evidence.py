"""What earlier runs measured, for the next plan: `evidence.json` in a run folder, or the key `evidence` of a report's JSON.

    {"noise_scale_samples": 57.2, "largest_stable_lr": 0.4, "batch": 32, "optimizer": "sgd", "source": "lr-range of digits"}

Every key but `source` may be missing. A tool that measures writes `to_json(evidence)`; `widebatch plan RUN.yaml --from FOLDER`
reads it.
"""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.config.errors import UserError
from harness.config.schema import Count, Positive
from harness.config.validate import check


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Numbers that were measured, and where."""

    noise_scale_samples: Positive | None = None
    """Gradient noise scale in samples, at high learning rates."""
    largest_stable_lr: Positive | None = None
    """Largest learning rate that stayed stable at the reference batch."""
    batch: Count | None = None
    """Global batch at which largest_stable_lr was measured."""
    optimizer: str | None = None
    """Optimizer whose rate it is."""
    source: str
    """Where all this was measured, as text for people."""

    def over(self, other: "Evidence | None") -> "Evidence":
        """This evidence, with what it lacks taken from `other`; both sources are named."""
        if other is None:
            return self
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        merged = {name: getattr(other, name) if value is None else value for name, value in mine.items()}
        return Evidence(**(merged | {"source": f"{self.source}; {other.source}"}))


def to_json(evidence: Evidence) -> dict[str, Any]:
    """Plain data, without what was not measured."""
    return {name: value for name, value in dataclasses.asdict(evidence).items() if value is not None}


def from_json(tree: dict[str, Any], where: str) -> Evidence:
    """Checked evidence from plain data. Raises UserError that names the file."""
    return check(Evidence, tree, prefix=f"{where}: ")


def as_flags(found: Evidence, optimizer: str, given: Collection[str] = ()) -> dict[str, str]:
    """What was measured, as command-line flags; settings in `given` are on the command line already, and are kept.

    Raises UserError if the learning rate was measured with another optimizer than the run file's `optimizer`.
    """
    if found.largest_stable_lr is not None and found.optimizer not in (None, optimizer):
        at = f"its largest stable lr is of {found.optimizer}, and the run file has optim.name: {optimizer}"
        raise UserError("--from", at, "measure it with this optimizer")
    measured = {"scaling.noise_scale": found.noise_scale_samples, "scaling.largest_stable_lr": found.largest_stable_lr}
    taken = {name: repr(value) for name, value in measured.items() if value is not None and name not in given}
    return taken | ({"scaling.evidence": json.dumps(found.source)} if taken else {})
