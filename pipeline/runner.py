"""Puts units of work on Ray: actors that set up once, bounded work in flight, retries, failures on record.

Ray carries units and small results only, of a plan its receipts. A setup is a picklable function that returns
`unit -> result`. Each actor has one unit at a time; actors join with the nodes of the cluster and are replaced when
they go.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.util.metrics import Counter as Total
from ray.util.metrics import Gauge

from data_specs.code_version import REPOSITORY
from data_specs.records import AnyUnit, Receipt
from data_specs.text import one_line
from pipeline.running import TRIES, Done, JobReport, Result, Setup, tried
from pipeline.waiting import DURATIONS, Try, UnitQueue, straggler
from pipeline.workers import UnitsFailed, Workers

TICK = 2.0  # seconds between looks at the cluster's size and at stragglers
log = logging.getLogger(__name__)

# served to Prometheus by every node of the cluster, as ray_dnd_…; infra/ray/grafana.json is a board of them
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
Started = tuple[str, str, str | None]  # node, host, why the worker could not start
if TYPE_CHECKING:  # Ray's types take no parameters as it runs before 2.49
    Attempt = ray.ObjectRef[tuple[Result | None, str]]  # a result to come, or why there is none


class _Worker(Generic[Result]):
    """The actor that works on units, one at a time."""

    def start(self, setup: Setup[Result]) -> Started:
        """Set up the worker, and return the node, the host and why it could not start, or None.

        What it was set up for before goes first.
        """
        where = ray.get_runtime_context().get_node_id(), socket.gethostname()
        self.work: Callable[[AnyUnit], Result] | None = None
        try:
            self.work = setup()
        except Exception as error:
            return *where, f"{type(error).__name__}: {error}"
        return *where, None

    def run(self, unit: AnyUnit) -> tuple[Result | None, str]:
        """Return (result, "") or (None, why the unit failed). A dead worker is Ray's to report."""
        assert self.work, "a worker starts before it runs"
        return tried(self.work, unit)


_ACTOR = ray.remote(_Worker)


class Spare(NamedTuple):
    """An actor that has ended a plan well, and what it holds."""

    actor: ActorHandle[_Worker[Any]]
    cpus: float


def connect(workers: Workers) -> None:
    """Join the cluster named by the address or RAY_ADDRESS, else start an embedded Ray.

    Raises:
        ConnectionError: that fails; the message says what to look at.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    address = workers.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if address:
        _refuse_closed_port(address)
        options["address"] = address
    else:
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it says that it made itself a token
        os.environ.setdefault("RAY_worker_niceness", "0")  # niced, workers starve on a machine that does anything else
        options |= {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, workers.num_workers or 1)}
    try:
        with contextlib.chdir(REPOSITORY):  # Ray has workers import from where it was started before anything else
            ray.init(**options)
    except Exception as error:  # whatever it is: Ray's own time limit is a bare Exception
        reason = one_line(error, 300)
        raise ConnectionError(
            f"Ray at {address or 'this machine'} did not start: {reason}; try `dnd doctor`"
        ) from error


def _refuse_closed_port(address: str) -> None:
    """Refuse a host:port where nobody listens: Ray itself would try for four minutes.

    Raises:
        ConnectionError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), 10).close()
        except OSError as error:
            raise ConnectionError(f"no Ray head at {address} ({error}): is it up, and the port open?") from None


def dismiss(spare: list[Spare]) -> None:
    """End actors that waited for a plan."""
    while spare:
        ray.kill(spare.pop().actor)


def _fitting(workers: Workers) -> int:
    """Workers that fit on the nodes that are alive."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if workers.gpus:
        return sum(int(has.get("GPU", 0) // workers.gpus) for has in resources)
    return sum(int(has.get("CPU", 0) // workers.cpus) for has in resources)


class _WorkerPool(Generic[Result]):
    """The actors of a run: as many as are wanted and fit, started and replaced as nodes come and go."""

    def __init__(self, setup: Setup[Result], workers: Workers) -> None:
        self.setup = setup
        self.workers = workers
        self.refused = 0
        self.next_look = 0.0
        self.actors: dict[int, ActorHandle[_Worker[Result]]] = {}
        self.starting: dict[ray.ObjectRef[Started], int] = {}
        self.nodes = dict[int, str]()
        self.hosts = dict[int, str]()
        self.idle = deque[int]()
        self.numbers = itertools.count()
        self.used = set[int]()  # have made an earlier plan
        spare = workers.spare or []
        if workers.gpus or any(one.cpus != workers.cpus for one in spare):
            dismiss(spare)  # what they hold is needed

    def resize(self, left: int) -> None:
        """Start workers that are wanted for the `left` units, and end those that wait in vain or idle, now and then."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + TICK
        wanted = min(self.workers.num_workers or max(_fitting(self.workers), 1), left)
        for _ in range(wanted - len(self.actors)):
            self._start()
        for reference in list(self.starting)[: max(len(self.actors) - wanted, 0)]:
            self._end(self.starting.pop(reference))
        while self.idle and len(self.nodes) > 2 * left:  # as many again may take up stragglers
            self._end(self.idle.pop())

    def _start(self) -> None:
        number = next(self.numbers)
        if self.workers.spare:
            self.actors[number] = self.workers.spare.pop().actor
            self.used.add(number)
        else:
            resources = {"num_cpus": self.workers.cpus, "num_gpus": self.workers.gpus}
            actor = _ACTOR.options(**resources, scheduling_strategy="SPREAD").remote()
            assert isinstance(actor, ActorHandle)
            self.actors[number] = actor
        self.starting[self.actors[number].start.remote(self.setup)] = number

    def _end(self, worker: int) -> None:
        ray.kill(self.actors.pop(worker))
        self.nodes.pop(worker, None)

    def start_done(self, reference: ray.ObjectRef[Started]) -> None:
        """Take up a worker that has started, and idles from now on; or note that it could not.

        Raises:
            UnitsFailed: none can.
        """
        worker = self.starting.pop(reference)
        try:
            self.nodes[worker], self.hosts[worker], error = ray.get(reference)
        except ray.exceptions.RayError as lost:
            error = one_line(lost, 300)
        if error is None:
            self.idle.append(worker)
            return
        self._end(worker)
        if worker in self.used:  # it may have died while it waited
            self.next_look = 0.0
            return
        self.refused += 1
        if self.refused >= TRIES and not self.nodes:
            raise UnitsFailed(f"no worker could start: {error}")

    def result(self, reference: Attempt[Result], worker: int) -> tuple[Result | None, str, bool]:
        """Return (result, "", True), or (None, why the try failed, whether it counts: the loss of a node does not)."""
        try:
            result, reason = ray.get(reference)
            self.idle.append(worker)
            return result, reason, True
        except ray.exceptions.RayError as error:
            node = self.nodes[worker]
            self._end(worker)
            self.next_look = 0.0
            alive = any(one["Alive"] for one in ray.nodes() if one["NodeID"] == node)
            return None, f"the worker died: {one_line(error, 300)}", alive

    def close(self) -> None:
        """End all workers, with those whose unit another has finished; idle ones are kept where that was asked for."""
        if self.workers.spare is not None and not self.workers.gpus:
            for worker in self.idle:
                self.workers.spare.append(Spare(self.actors.pop(worker), self.workers.cpus))
        for worker in list(self.actors):
            self._end(worker)


class RayJob(Generic[Result]):
    """One run over units, on workers: who works on which of them, what failed and why.

    Args:
        units: what is to be done.
        num_units: how many they are.
        setup: returns `unit -> result` in each worker.
        workers: how the cluster is used; it is joined, or started.
        task: stage and set, as metrics are tagged.
        report: where it is written how far the run is.
    """

    def __init__(
        self,
        units: Iterable[AnyUnit],
        num_units: int,
        setup: Setup[Result],
        workers: Workers,
        task: str,
        report: JobReport | None,
    ) -> None:
        connect(workers)
        self.waiting = UnitQueue(iter(units))
        self.left = num_units
        self.max_failures = workers.max_failures
        self.pool = _WorkerPool(setup, workers)
        self.running: dict[Attempt[Result], Try] = {}
        self.done = set[int]()
        self.tries = Counter[int]()
        self.failures = 0
        self.report = report
        self.metrics = RunMetrics(task)
        self.durations = deque[float](maxlen=DURATIONS)

    def run(self) -> Iterator[Done[Result]]:
        """Run the units; yield each once, as it ends."""
        try:
            while self.left and self.failures < self.max_failures:
                self.pool.resize(self.left)
                self._hand_out()
                self._report()
                pending = [*self.running, *self.pool.starting]
                if not pending:  # no worker could start: the next look tries again
                    time.sleep(TICK / 10)
                    continue
                for reference in ray.wait(pending, num_returns=1, timeout=TICK)[0]:
                    if reference not in self.running:
                        self.pool.start_done(reference)
                    elif done := self._finish_try(reference):
                        yield done
        finally:
            self.pool.close()
        self._report(ended=True)

    def _report(self, ended: bool = False) -> None:
        self.metrics.show(self.left, len(self.running), len(self.pool.nodes))
        if self.report:
            tries = [] if ended else list(self.running.values())
            self.report.write(tries, {} if ended else self.pool.hosts, self.failures, ended)

    def _hand_out(self) -> None:
        """Give each idle worker a unit that waits; where none does, a straggler once more, elsewhere if it can."""
        idle = self.pool.idle
        while idle and self.waiting:
            self._assign(worker := idle.popleft(), self.waiting.take(self.pool.nodes[worker]))
        while idle and (slow := straggler(self.running.values(), self.durations, time.monotonic())):
            elsewhere = (worker for worker in idle if self.pool.nodes[worker] != self.pool.nodes[slow.worker])
            idle.remove(worker := next(elsewhere, idle[0]))
            log.warning("unit %s takes long on %s: started once more", slow.unit.unit, self.pool.hosts[slow.worker])
            self._assign(worker, slow.unit)

    def _assign(self, worker: int, unit: AnyUnit) -> None:
        self.running[self.pool.actors[worker].run.remote(unit)] = Try(worker, unit, time.monotonic())

    def _finish_try(self, reference: Attempt[Result]) -> Done[Result] | None:
        """One try of a unit has ended: well, or badly; of two tries the first that ends well counts."""
        ended = self.running.pop(reference)
        node = self.pool.nodes[ended.worker]
        number = ended.unit.unit
        result, failure, counts = self.pool.result(reference, ended.worker)
        if not counts:
            self.waiting.forget_node(node)
        if number in self.done:
            return None
        if failure:
            again = any(other.unit.unit == number for other in self.running.values())
            return None if again else self._fail(ended.unit, failure, counts)
        self.done.add(number)
        self.left -= 1
        self.metrics.count(result)
        self.durations.append(time.monotonic() - ended.since)
        return Done(ended.unit, result)

    def _fail(self, unit: AnyUnit, reason: str, counts: bool) -> Done[Result] | None:
        number = unit.unit
        self.tries[number] += counts
        self.metrics.count_failure(for_good=self.tries[number] >= TRIES)
        if self.tries[number] < TRIES:
            self.waiting.put_back(unit)
            return None
        self.failures += 1
        self.left -= 1
        return Done(unit, None, reason)


class RunMetrics:
    """The metrics of one run over a plan, each tagged with its stage and set.

    Args:
        task: stage and set, as the progress line has them: `render images/train`.
    """

    def __init__(self, task: str) -> None:
        stage, _, name = task.partition(" ")
        self.counters = {
            name: Total(f"dnd_{name}", about, (*TAGS, "reason") if name in ("filtered", "rejected") else TAGS)
            for name, about in COUNTERS.items()
        }
        self.gauges = {name: Gauge(f"dnd_{name}", about, TAGS) for name, about in GAUGES.items()}
        for metric in (*self.counters.values(), *self.gauges.values()):
            metric.set_default_tags({"stage": stage, "set": name})

    def count(self, result: object) -> None:
        """Count a unit that is done, and what its receipt says, where that is its result."""
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
        """Count a try that failed."""
        self.counters["units_failed" if for_good else "retries"].inc()

    def show(self, left: int, running: int, workers: int) -> None:
        """Set the gauges."""
        for name, value in (("units_left", left), ("units_running", running), ("workers", workers)):
            self.gauges[name].set(value)
