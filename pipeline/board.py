"""What a running job says of itself: SET/progress.json, written now and then by the driver, read by `dnd status`.

One small file, so that status costs two or three reads whatever the size of the set. It goes when the manifest comes.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_specs import storage
from data_specs.manifest import count
from data_specs.receipts import Receipt
from data_specs.units import Plan
from pipeline.waiting import Run

EVERY_SECONDS = 10.0
SHOWN = 10  # running units that are named, the longest first


class Board:
    """The account of one run over a plan: what is done before and by it, what runs, how fast."""

    def __init__(self, plan: Plan, before: Iterable[Receipt]) -> None:
        self.plan, self.started, self.written = plan, time.time(), 0.0
        self.totals, self.filtered, self.rejects = Counter[str](), Counter[str](), Counter[str]()
        self.done = set[int]()
        for receipt in before:
            self.add(receipt)
        self.before = len(self.done)

    def add(self, receipt: Receipt) -> None:
        """A unit is done."""
        if receipt["unit"] not in self.done:
            self.done.add(receipt["unit"])
            count(receipt, self.totals, self.filtered, self.rejects)

    def show(self, runs: Iterable[Run], nodes: dict[int, str], failed: int, ended: bool = False) -> None:
        """Writes the file if it is time, or if the run has ended."""
        if ended or time.time() - self.written >= EVERY_SECONDS:
            self.written = time.time()
            text = json.dumps(self.facts(list(runs), nodes, failed) | {"ended": ended}, sort_keys=True)
            storage.write_text(progress_uri(self.plan.set_uri), text + "\n")

    def facts(self, runs: list[Run], nodes: dict[int, str], failed: int) -> dict[str, Any]:
        """What the file says. `nodes` names the node of each worker; times are in seconds."""
        minutes = (self.written - self.started) / 60
        rate = (len(self.done) - self.before) / minutes if minutes else 0.0
        left, now = self.plan.num_units - len(self.done) - failed, time.monotonic()
        longest = sorted(runs, key=lambda run: run.since)[:SHOWN]
        return {
            "digest": self.plan.digest,
            "host": socket.gethostname(),
            "written": round(self.written, 3),
            "units": self.plan.num_units,
            "done": len(self.done),
            "failed": failed,
            "workers": len(nodes),
            "running": len(runs),
            "longest": [[r.unit["unit"], round(now - r.since), nodes.get(r.worker, "")] for r in longest],
            "units_per_minute": round(rate, 3),
            "seconds_left": round(left / rate * 60) if rate else None,
            "totals": dict(self.totals),
            "filtered": dict(self.filtered),
            "rejects": dict(self.rejects),
        }

    def take_down(self) -> None:
        """Removes the file: the manifest says it all."""
        storage.delete(progress_uri(self.plan.set_uri))


def progress_uri(set_uri: str) -> str:
    """Address of a set's progress file."""
    return storage.join(set_uri, "progress.json")
