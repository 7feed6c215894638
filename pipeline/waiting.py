"""Scheduling: units of one affinity go to one node where possible, stragglers are started a second time at the end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median
from typing import NamedTuple

from data_specs.records import AnyUnit

AHEAD = 4096  # units read ahead of the plan, to find some whose affinity belongs to the asking node
STRAGGLER_FACTOR = 3.0  # times the median
STRAGGLER_SECONDS = 30.0  # at least
DURATIONS = 1000  # latest durations that the median is taken of


class UnitQueue:
    """Units of a plan that nobody works on yet; memory holds at most AHEAD of them and those put back."""

    def __init__(self, todo: Iterator[AnyUnit]) -> None:
        self.todo = todo
        self.ahead = deque(islice(todo, AHEAD))
        self.node_of: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.ahead)

    def put_back(self, unit: AnyUnit) -> None:
        """Put back a unit to be tried again."""
        self.ahead.append(unit)

    def take(self, node: str) -> AnyUnit:
        """Take a unit for a worker on this node; there must be one.

        The first whose affinity belongs to this node or to none yet, else the first: an idle worker costs more than a
        second fetch. A unit without `affinity` suits every node.
        """
        index = next((n for n, unit in enumerate(self.ahead) if self._suits(unit, node)), 0)
        unit = self.ahead[index]
        del self.ahead[index]
        self.ahead.extend(islice(self.todo, 1))
        if affinity := unit.affinity:
            self.node_of.setdefault(affinity, node)
        return unit

    def _suits(self, unit: AnyUnit, node: str) -> bool:
        affinity = unit.affinity
        return affinity is None or self.node_of.get(affinity, node) == node

    def forget_node(self, node: str) -> None:
        """Forget a node that is gone, so that its affinities go to others."""
        self.node_of = {affinity: home for affinity, home in self.node_of.items() if home != node}


class Try(NamedTuple):
    """One try of a unit: who works on it, and since when (monotonic seconds)."""

    worker: int
    unit: AnyUnit
    since: float


def straggler(running: Iterable[Try], durations: deque[float], now: float) -> Try | None:
    """Return the try that takes longest, if far longer than others took and on one worker only; else None."""
    tries = list(running)
    copies = Counter(one.unit.unit for one in tries)
    alone = [one for one in tries if copies[one.unit.unit] == 1]
    if len(durations) < 3 or not alone:
        return None
    longest = min(alone, key=lambda one: one.since)
    limit = max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * median(durations))
    return longest if now - longest.since > limit else None
