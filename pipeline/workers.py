"""How a job uses a cluster, and how it ends badly: what commands say of a run, without loading Ray."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

from data_specs.records import AnyUnit

if TYPE_CHECKING:
    from pipeline.runner import Spare

MAX_FAILURES = 100  # units that fail for good before a run ends


class Share(NamedTuple):
    """Which units of a plan a job takes where `total` jobs share it, on machines that no Ray ties together."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `2/8`.

        Raises:
            ValueError: it is no number of a total, counted from 1.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--part {text}: give which of how many, counted from 1: --part 2/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def of(self, units: Iterable[AnyUnit]) -> Iterator[AnyUnit]:
        """Yield the job's units in order; units of one affinity all go to the same job."""
        groups: dict[str, int] = {}
        for unit in units:
            group = groups.setdefault(unit.affinity, len(groups)) if unit.affinity else unit.unit
            if group % self.total == self.number - 1:
                yield unit


class Workers(NamedTuple):
    """How a job uses a cluster.

    Attributes:
        address: Ray's; None starts an embedded one.
        num_workers: at most so many actors; None takes all that fit, as nodes come and go; 0 takes none, and no Ray.
        cpus: cores of an actor.
        gpus: GPUs of an actor, also a fraction.
        max_failures: units that fail for good before the run ends.
        share: which units of a plan the job takes.
        spare: actors that wait for the next plan (`kept`); None keeps none.
    """

    address: str | None = None
    num_workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = MAX_FAILURES
    share: Share = Share()
    spare: list[Spare] | None = None

    @property
    def here(self) -> bool:
        """Whether units are made in this process."""
        return self.num_workers == 0


@contextmanager
def kept(workers: Workers) -> Iterator[Workers]:
    """Keep workers: in the block, those that have ended a plan take up the next, with what they have imported.

    Those with GPUs do not: between two plans a stage asks for a GPU of its own, to see what fits.
    """
    spare: list[Spare] = []
    try:
        yield workers._replace(spare=spare)
    finally:
        if spare:
            from pipeline.runner import dismiss

            dismiss(spare)


class ShareDone(Exception):
    """A job has done its share of a plan, and other jobs have not done theirs: what is made of the whole waits."""


class UnitsFailed(RuntimeError):
    """Some units failed for good; their reasons stand in NNNNNN.failed.json. A re-run tries them again."""
