"""Ranks are lost: the others come together again in their processes, with the weights that they have.

Every rank of a run with ddp has all weights and moments, and where each sample goes follows from its place in the stream. So what a
lost rank alone had is nothing but its part of the step in which it was lost. That step is undone, and taken again by those who are
left. Where they do not stand at the same place, the error is raised: then all start again from the newest checkpoint.
"""

import time
from dataclasses import dataclass

from harness.distributed.peers import NotInPlaceError, Peers
from harness.engine.interface import Engine
from harness.plan.plan import Plan
from harness.supervision.output_redirect import say


@dataclass(frozen=True)
class Recovery:
    """What was lost, the plan of those who are left, and the seconds that it took."""

    lost: tuple[int, ...]
    plan: Plan
    seconds: float

    def __str__(self) -> str:
        """In words."""
        who = f"rank {self.lost[0]} was" if len(self.lost) == 1 else f"ranks {', '.join(map(str, self.lost))} were"
        left, passes = self.plan.world_size, self.plan.passes
        return (
            f"{who} lost: {left} rank{'s continue' if left > 1 else ' continues'} after {self.seconds:.2f} s, without a restart,"
            f" with the same global batch in {passes} pass{'es' if passes > 1 else ''} a step"
        )


def recover(engine: Engine, peers: Peers, plan: Plan, stand: str, limit_s: float, error: RuntimeError) -> Recovery:
    """Make group and engine those of the ranks that are left; `stand` says where this one stands.

    Raises `error`, with which a collective has failed, where no rank is lost, or they cannot continue, or not within `limit_s`.
    """
    began = time.monotonic()
    lost: list[int] = []
    while True:
        if not peers.lost(error) or time.monotonic() - began > limit_s:
            raise error
        try:
            lost += peers.meet(stand, limit_s - (time.monotonic() - began))
            there = plan.on_ranks(len(peers.seats))
            engine.regroup(there)
        except NotInPlaceError as e:
            say(f"note   not continued in place: {e}")
            raise error from e
        except RuntimeError as e:  # another rank may be lost meanwhile
            error = e
            continue
        peers.joined()
        return Recovery(tuple(sorted(lost)), there, time.monotonic() - began)
