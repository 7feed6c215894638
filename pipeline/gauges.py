"""Metrics of a job for Ray's Prometheus endpoint: counters of units, samples, bytes and rejects, and gauges.

Every node of a Ray cluster serves them as ray_dnd_…; infra/ray/grafana.json is a board of them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from data_specs.records import Receipt

COUNTERS = {
    "units": "units that are done",
    "units_failed": "units that failed for good",
    "retries": "tries of units that failed and are made again",
    "samples": "samples written",
    "bytes": "bytes of the shards written",
    "filtered": "samples filtered, by reason",
    "rejected": "documents and samples rejected, by reason",
}
GAUGES = {"units_left": "units that are not done", "units_running": "units that run now", "workers": "workers alive"}
TAGS = ("stage", "set")


class RunMetrics:
    """The metrics of one run over a plan, each tagged with its stage and set.

    Args:
        task: stage and set, as the progress line has them: `render images/train`.
    """

    def __init__(self, task: str) -> None:
        stage, _, name = task.partition(" ")
        self.counters = {
            name: Counter(f"dnd_{name}", about, (*TAGS, "reason") if name in ("filtered", "rejected") else TAGS)
            for name, about in COUNTERS.items()
        }
        self.gauges = {name: Gauge(f"dnd_{name}", about, TAGS) for name, about in GAUGES.items()}
        for metric in (*self.counters.values(), *self.gauges.values()):
            metric.set_default_tags({"stage": stage, "set": name})

    def count(self, result: object) -> None:
        """Counts a unit that is done, and what its receipt says, where that is its result."""
        self.counters["units"].inc()
        if isinstance(result, Receipt):
            self._count_samples(result)

    def _count_samples(self, receipt: Receipt) -> None:
        if receipt.shard:
            self.counters["samples"].inc(receipt.written)
            self.counters["bytes"].inc(receipt.shard.bytes)
        for reason, number in receipt.filtered.items():
            self.counters["filtered"].inc(number, {"reason": str(reason)})
        for reject in receipt.rejected:
            self.counters["rejected"].inc(1, {"reason": str(reject.reason)})

    def count_failure(self, for_good: bool) -> None:
        """Counts a try that failed."""
        self.counters["units_failed" if for_good else "retries"].inc()

    def show(self, left: int, running: int, workers: int) -> None:
        """Sets the gauges."""
        for name, value in (("units_left", left), ("units_running", running), ("workers", workers)):
            self.gauges[name].set(value)
