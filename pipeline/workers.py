"""How a job uses a cluster, and how it ends badly: what commands say of a run, without loading Ray."""

from __future__ import annotations

from typing import NamedTuple

MAX_FAILURES = 100  # units that fail for good before a run ends


class Workers(NamedTuple):
    """How a job uses a cluster: Ray's address (None: embedded), most actors (None: all that fit, as nodes come and
    go), what each one holds, and how many units may fail before the run ends."""

    address: str | None = None
    num_workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = MAX_FAILURES

    @property
    def device(self) -> str:
        """Kind of device that the workers compute on; it decides bytes, so it is part of digests."""
        return "cuda" if self.gpus else "cpu"


class UnitsFailed(RuntimeError):
    """Some units failed for good; their reasons stand in NNNNNN.failed.json. A re-run tries them again."""
