"""The report of a running job: SET/progress.json, written by the driver now and then, read by `dnd status`.

One small file, so that status costs two or three reads whatever the size of the set. The manifest replaces it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable

from data_specs import storage
from data_specs.manifest import Account
from data_specs.records import JobState, Receipt
from data_specs.units import Plan
from pipeline.waiting import Try

EVERY_SECONDS = 10.0
SHOWN = 10  # running units that are named, the longest first


class JobReport:
    """The account of one run over a plan: what is done before and by it, what runs, how fast."""

    def __init__(self, plan: Plan, before: Iterable[Receipt]) -> None:
        self.plan = plan
        self.account = Account(before)
        self.started = time.time()
        self.written = 0.0
        self.before = len(self.account.units)

    @property
    def done(self) -> set[int]:
        """Numbers of the units that are done."""
        return self.account.units

    def write(self, runs: Collection[Try], hosts: dict[int, str], failed: int, ended: bool = False) -> None:
        """Writes the file if it is time, or if the run has ended. `hosts` names the host of each worker."""
        if ended or time.time() - self.written >= EVERY_SECONDS:
            self.written = time.time()
            storage.write(progress_uri(self.plan.set_uri), self.state(runs, hosts, failed, ended).to_json())

    def state(self, runs: Collection[Try], hosts: dict[int, str], failed: int, ended: bool) -> JobState:
        """What the file says."""
        minutes = (self.written - self.started) / 60
        rate = (len(self.done) - self.before) / minutes if minutes else 0.0
        left = self.plan.num_units - len(self.done) - failed
        now = time.monotonic()
        longest = sorted(runs, key=lambda run: run.since)[:SHOWN]
        return JobState(
            digest=self.plan.digest,
            host=socket.gethostname(),
            written=round(self.written, 3),
            ended=ended,
            units=self.plan.num_units,
            done=len(self.done),
            failed=failed,
            workers=len(hosts),
            running=len(runs),
            longest=tuple((run.unit.unit, round(now - run.since), hosts.get(run.worker, "")) for run in longest),
            units_per_minute=round(rate, 3),
            seconds_left=round(left / rate * 60) if rate else None,
            totals=self.account.totals,
            filtered=dict(self.account.filtered),
            rejects=dict(self.account.rejects),
        )

    def remove(self) -> None:
        """Removes the file, which the manifest replaces."""
        storage.delete(progress_uri(self.plan.set_uri))


def progress_uri(set_uri: str) -> str:
    """Address of a set's progress file."""
    return storage.join(set_uri, "progress.json")
