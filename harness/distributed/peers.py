"""The other ranks of this machine, as processes: which of them are gone, and a group of those that are left.

A thread sleeps until one of them ends. Where it ended without a word, the group is cut off, so that no collective waits for it; the
ranks that are left then meet at the store under a new name, agree on where they stand, and make a group of their own. Rank 0, which
keeps journal and locks, leads; without it all ranks start again.
"""

import json
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch.distributed as dist

from harness.distributed.group import base_store, cut_off
from harness.distributed.process_group import gather, join_again
from harness.supervision.fault_detection import RankStatus, lost_a_peer, vanished
from harness.supervision.heartbeat import Heartbeat, read
from harness.supervision.output_redirect import say

SETTLE_S = 0.05
"""How long a collective that the lost rank has done its part of may take to end well, before the group is cut off."""
NEWS_S = 30.0
"""How long after a collective has failed the end of a process may be noticed, on a machine that is busy."""
CONNECT_S = 10.0
"""How long to connect may take, among ranks that have all said that they are there."""
_LOOK_S = 0.005


class NotInPlaceError(RuntimeError):
    """The ranks cannot continue in their processes; the text says why."""


@final
class Peers:
    """Ranks by their seats, which is what their launcher calls them: their ranks in the first group. `pulses`: of all ranks."""

    def __init__(self, seat: int, pulses: Sequence[Path], heartbeat: Heartbeat) -> None:
        self.seat, self.seats, self._pulses, self._heartbeat = seat, list(range(len(pulses))), list(pulses), heartbeat
        self._handles: dict[int, int] = {}
        self._gone: set[int] = set()
        self._news = threading.Condition()
        self._number = 1
        self._attempt = 0
        self._over = False

    def watch(self) -> bool:
        """From here on a rank that vanishes is noticed; False, with a note, where the kernel cannot tell."""
        try:
            self._open_handles()
        except OSError as e:
            say(f"note   a rank that is lost cannot be noticed here ({e}): all start again then")
            return False
        threading.Thread(target=self._watch, name="peers", daemon=True).start()
        self._heartbeat.in_group(self._number)
        return True

    def _open_handles(self) -> None:
        for seat in self.seats:
            if seat != self.seat:
                beat = read(self._pulses[seat])
                try:
                    self._handles[os.pidfd_open(beat.pid if beat else 0)] = seat
                except ProcessLookupError:  # already
                    self._lose([seat])

    def rely(self) -> None:
        """From here on every rank is needed: what fails, fails."""
        self._over = True
        self._heartbeat.in_group(0)

    def _watch(self) -> None:
        waiting = select.poll()
        for handle in self._handles:
            waiting.register(handle, select.POLLIN)
        left = len(self._handles)
        while left:
            ended = [handle for handle, _ in waiting.poll()]
            left -= len(ended)
            gone = [self._handles[handle] for handle in ended if self._vanished(self._handles[handle])]
            for handle in ended:
                waiting.unregister(handle)
            if gone and not self._over:
                time.sleep(SETTLE_S)
                self._lose(gone)

    def _lose(self, gone: Sequence[int]) -> None:
        try:
            if set(gone).intersection(self.seats):
                cut_off()
        except (OSError, RuntimeError) as e:
            say(f"warn   the process group cannot be cut off ({e}): its collectives end by their timeout")
        with self._news:
            self._gone.update(gone)
            self._news.notify_all()

    def _vanished(self, seat: int) -> bool:
        return vanished(RankStatus(seat, read(self._pulses[seat]), alive=False))

    def lost(self, error: Exception) -> list[int]:
        """The seats of this group whose ranks are gone; waited for, where the error is a collective's that has lost a peer."""
        with self._news:
            if lost_a_peer(str(error)):
                self._news.wait_for(lambda: self._gone.intersection(self.seats), NEWS_S)
            return sorted(self._gone.intersection(self.seats))

    def meet(self, stand: str, limit_s: float) -> list[int]:
        """Make a group of the ranks that are left, all of which stand at `stand`; the seats of those that the old one had lost.

        Raises NotInPlaceError where they do not, where rank 0 is gone, or where not all are there in time.
        """
        before, deadline = self.seats, time.monotonic() + limit_s
        while True:
            if before[0] in self._gone:
                raise NotInPlaceError(f"rank {before[0]} is gone, which keeps the journal")
            self._attempt += 1
            store: Any = dist.PrefixStore(f"in_place/{self._attempt}", base_store())  # type: ignore[attr-defined]
            store.set(f"at/{self.seat}", stand)
            seats = self._lead(store, deadline) if self.seat == before[0] else self._follow(store, before[0], deadline)
            self.seats = seats  # before there is a group that the late news of another's end would cut off
            try:
                join_again(f"in_place/{self._attempt}/group", seats.index(self.seat), len(seats), CONNECT_S)
                if gather(self._attempt) != [self._attempt] * len(seats):
                    raise NotInPlaceError("the ranks that are left do not belong together")
            except RuntimeError as e:  # another one was lost meanwhile
                if isinstance(e, NotInPlaceError) or time.monotonic() > deadline:
                    raise
                continue
            if self._gone.intersection(seats):
                continue
            self._heartbeat.on_warm(False)
            return [seat for seat in before if seat not in seats]

    def joined(self) -> None:
        """All is ready to train in the new group."""
        self._number += 1
        self._heartbeat.in_group(self._number)

    def _lead(self, store: Any, deadline: float) -> list[int]:
        """Wait for all that are not gone, and say who they are."""
        while not store.check([f"at/{seat}" for seat in self._left()]):
            if time.monotonic() > deadline:
                store.set("roster", json.dumps({"why": "not all ranks that are left came together in time"}))
                return self._members(store)
            time.sleep(_LOOK_S)
        store.set("roster", json.dumps(_roster({seat: store.get(f"at/{seat}").decode() for seat in self._left()})))
        return self._members(store)

    def _follow(self, store: Any, leader: int, deadline: float) -> list[int]:
        """Wait for what the leader says."""
        while not store.check(["roster"]):
            if leader in self._gone:
                raise NotInPlaceError(f"rank {leader} is gone, which keeps the journal")
            if time.monotonic() > deadline + CONNECT_S:
                raise NotInPlaceError(f"rank {leader} did not say in time who is left")
            time.sleep(_LOOK_S)
        return self._members(store)

    def _left(self) -> list[int]:
        return [seat for seat in self.seats if seat not in self._gone]

    def _members(self, store: Any) -> list[int]:
        roster = json.loads(store.get("roster"))
        if "why" in roster:
            raise NotInPlaceError(roster["why"])
        if self.seat not in roster["seats"]:
            raise NotInPlaceError("the others continue without this rank")
        return list(roster["seats"])


def _roster(stands: Mapping[int, str]) -> dict[str, Any]:
    """Who continues; or why nobody can: a step that some have taken, and others not, cannot be taken again."""
    if len(set(stands.values())) > 1:
        return {"why": "the ranks do not stand at the same step: " + ", ".join(f"rank {s} {at}" for s, at in stands.items())}
    return {"seats": sorted(stands)}
