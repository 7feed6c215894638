"""Puts a plan's units on Ray: actors that set up once, bounded work in flight, retries, failures on record.

Ray carries units and receipts only. A setup is a picklable function that returns the stage's `unit -> receipt`.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from data_specs import receipts, storage
from data_specs.manifest import Manifest, merge
from data_specs.progress import Progress
from data_specs.receipts import Receipt
from data_specs.units import Plan, Unit

Stage = Callable[[Unit], Receipt]
Setup = Callable[[], Stage]
log = logging.getLogger(__name__)


class Workers(NamedTuple):
    """How a job uses a cluster: Ray's address (None: embedded), number of actors, and what each one holds."""

    address: str | None = None
    num_workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 100


class UnitsFailed(RuntimeError):
    """Some units failed for good; their reasons stand in NNNNNN.failed.json. A re-run tries them again."""


@ray.remote(max_restarts=-1)
class _Worker:
    def __init__(self, setup: Setup) -> None:
        self.stage = setup()

    def run(self, unit: Unit) -> tuple[int, str | None]:
        """(unit's number, why it failed or None). A dead worker is Ray's to report."""
        try:
            self.stage(unit)
        except Exception as error:
            expected = isinstance(error, (OSError, ValueError))  # says enough by itself: a full disk, a changed source
            log.error("unit %s: %s: %s", unit["unit"], type(error).__name__, error, exc_info=not expected)
            return unit["unit"], f"{type(error).__name__}: {error}"
        return unit["unit"], None

    @ray.method(max_task_retries=2)
    def call(self, task: Any) -> Any:
        return self.stage(task)


def connect(workers: Workers) -> None:
    """Joins the cluster named by the address or RAY_ADDRESS, else starts an embedded Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    address = workers.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if address:
        ray.init(address=address, **options)
    else:
        ray.init(include_dashboard=False, num_cpus=max(os.cpu_count() or 1, workers.num_workers or 1), **options)


def run_plan(plan: Plan, setup: Setup, workers: Workers, kind: str, task: str, counted: str = "units") -> Manifest:
    """Runs every unit without a valid receipt, then merges the manifest.

    kind: "images" or "codes", as the manifest names it; task: what the progress line is called; counted: what it
    counts, units or what their `count` says. Raises UnitsFailed where units failed three times, saying which and why.
    """
    done = {receipt["unit"] for receipt in receipts.valid_receipts(plan.set_uri, plan.digest)}
    if len(done) < plan.num_units:
        todo = (unit for unit in plan.units() if unit["unit"] not in done)
        sizes = {unit["unit"]: _size(unit, counted) for unit in plan.units()}
        progress = Progress(task, sum(sizes.values()), counted, sum(sizes[unit] for unit in done))
        failures = _run(plan.set_uri, todo, setup, workers, plan.num_units - len(done), progress)
        if failures:
            shown = "; ".join(f"unit {unit}: {reason}" for unit, reason in sorted(failures.items())[:5])
            raise UnitsFailed(
                f"{plan.set_uri}: {len(failures)} units failed ({shown}); run the command again to retry them"
            )
    return merge(plan, kind)


def run_tasks(setup: Callable[[], Callable[[Any], Any]], tasks: Sequence[Any], workers: Workers) -> Iterator[Any]:
    """What the stage returns for each task, in their order; for results that are small and need no receipt.

    At most two tasks an actor are under way. An error of the stage ends the iteration and is raised as it was there.
    """
    connect(workers)
    actors, waiting = _actors(setup, workers, len(tasks)), deque[Any]()
    for number, task in enumerate(tasks):
        waiting.append(actors[number % len(actors)].call.remote(task))
        if len(waiting) == 2 * len(actors):
            yield _value(waiting.popleft())
    yield from map(_value, waiting)


def _value(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise UnitsFailed(f"a worker died: {' '.join(str(error).split())[:300]}; run the command again") from None


def _size(unit: Unit, counted: str) -> int:
    return 1 if counted == "units" else int(unit["count"])


def _run(
    set_uri: str, todo: Iterator[Unit], setup: Setup, workers: Workers, left: int, progress: Progress
) -> dict[int, str]:
    """Keeps each actor busy with one unit and one waiting; returns the reasons of units that failed three times."""
    connect(workers)
    actors = _actors(setup, workers, left)
    idle, running = deque(actors * 2), dict[Any, tuple[Any, Unit]]()
    again, tries, failures = deque[Unit](), dict[int, int](), dict[int, str]()
    while True:
        while idle and (unit := again.popleft() if again else next(todo, None)):
            actor = idle.popleft()
            running[actor.run.remote(unit)] = (actor, unit)
        if not running:
            progress.finish(f"{len(failures)} failed" if failures else "")
            return failures
        ready, _ = ray.wait(list(running), num_returns=1)
        actor, unit = running.pop(ready[0])
        idle.append(actor)
        reason = _result(ready[0])
        if reason is None:
            progress.advance(_size(unit, progress.unit))
            continue
        tries[unit["unit"]] = tries.get(unit["unit"], 0) + 1
        if tries[unit["unit"]] < 3:
            again.append(unit)
            continue
        failures[unit["unit"]] = reason
        receipts.record_failure(set_uri, unit["unit"], reason)
        if len(failures) >= workers.max_failures:
            return failures


def _result(reference: Any) -> str | None:
    """Why the unit failed, or None; the death of a worker or node counts as a try that failed."""
    try:
        return ray.get(reference)[1]
    except ray.exceptions.RayActorError as error:
        return f"the worker died: {' '.join(str(error).split())[:300]}"
    except ray.exceptions.RayTaskError as error:
        return f"the worker could not start: {error.cause}"


def _actors(setup: Setup, workers: Workers, num_units: int) -> list[Any]:
    available = ray.cluster_resources()
    fits = (
        int(available.get("GPU", 0) // workers.gpus) if workers.gpus else int(available.get("CPU", 1) // workers.cpus)
    )
    number = min(workers.num_workers or max(fits, 1), num_units)
    worker: Any = _Worker
    return [worker.options(num_cpus=workers.cpus, num_gpus=workers.gpus).remote(setup) for _ in range(number)]


def resolve(root: str, uri: str) -> str:
    """An input's URI: as given where it is absolute or remote, else under the root."""
    return storage.join(root, uri)
