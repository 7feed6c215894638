"""Runs the units of a plan, on workers or in this process, reports on them, and merges what they leave.

With `--workers 0` units are made here, one after the other, without Ray: for a debugger, and for small sets. How far a
job is stands in SET/progress.json, written by the driver now and then: `dnd status` reads one small file, whatever the
size of the set. The manifest replaces it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from data_specs import receipts, storage
from data_specs.manifest import Account, merge, store, summarise
from data_specs.progress import Progress
from data_specs.records import AnyUnit, JobState, Manifest, RangeUnit, Receipt
from data_specs.units import Plan
from pipeline.waiting import Try
from pipeline.workers import Share, UnitsFailed, Workers

Result = TypeVar("Result")
Setup = Callable[[], Callable[[Any], Result]]  # called once in each worker, returns what is called for each unit
EVERY_SECONDS = 10.0  # between two reports
SHOWN = 10  # running units that are named, the longest first
TRIES = 3  # of a unit, and of workers that cannot start
log = logging.getLogger(__name__)


class Done(NamedTuple, Generic[Result]):
    """A unit that is done, with what was made of it, or that failed for good, with the reason."""

    unit: AnyUnit
    result: Result | None
    failure: str = ""


def run_plan(
    plan: Plan, setup: Setup[Receipt], workers: Workers, holds: str, task: str, progress_unit: str = "units"
) -> Manifest:
    """Run every unit without a valid receipt, then merge the manifest.

    Args:
        plan: the set's plan.
        setup: returns `unit -> receipt`.
        workers: how the cluster is used.
        holds: "images" or "codes", as the manifest names it.
        task: stage and set, as the progress line has them.
        progress_unit: what that line counts: units, or what they are ranges of.

    Raises:
        UnitsFailed: as `run_units`.
    """
    report = JobReport(plan, receipts.valid_receipts(plan.set_uri, plan.digest))
    if len(report.done) == plan.num_units:
        manifest = report.account.manifest(plan, holds)
        store(plan.set_uri, manifest)
    else:
        _run_missing(report, setup, workers, task, progress_unit)
        manifest = _merged(plan, holds, workers.share)
    report.remove()
    return manifest


def _run_missing(report: JobReport, setup: Setup[Receipt], workers: Workers, task: str, progress_unit: str) -> None:
    """Run those units of the job's share that have no receipt."""
    plan = report.plan
    sizes = {unit.unit: size_of(unit, progress_unit) for unit in workers.share.of(plan.units())}
    missing = sizes.keys() - report.done
    if not missing:
        return
    progress = Progress(task, sum(sizes.values()), progress_unit, sum(sizes[unit] for unit in sizes.keys() - missing))
    units = (unit for unit in plan.units() if unit.unit in missing)
    alone = workers.share.total == 1  # of jobs that share a plan none knows how far it is: their receipts say it
    for done in run_units(units, len(missing), setup, workers, progress, report if alone else None):
        if done.result is None:
            receipts.record_failure(plan.set_uri, done.unit.unit, done.failure)
        else:
            report.account.add(done.result)


def _merged(plan: Plan, holds: str, share: Share) -> Manifest:
    """Merge the receipts as they lie now: another job may have written some. A share of a plan may lack some."""
    if share.total == 1:
        return merge(plan, holds)
    manifest = summarise(plan, holds)
    if manifest.complete:
        store(plan.set_uri, manifest)
    return manifest


def run_units(
    units: Iterable[AnyUnit],
    num_units: int,
    setup: Setup[Result],
    workers: Workers,
    progress: Progress,
    report: JobReport | None = None,
) -> Iterator[Done[Result]]:
    """Run units; yield each once, as soon as it is done or has failed for good.

    Args:
        units: what is to be done.
        num_units: how many they are.
        setup: returns `unit -> result`, which should be small.
        workers: how the cluster is used.
        progress: the line that shows how far it is.
        report: where else that is written.

    Raises:
        UnitsFailed: some failed three times, or no worker could start; the line says why.
    """
    if workers.here:
        ended = _run_here(units, setup, workers, report)
    else:
        from pipeline.runner import RayJob

        ended = RayJob(units, num_units, setup, workers, progress.task, report).run()
    failures = dict[int, str]()
    for done in ended:
        if done.failure:
            failures[done.unit.unit] = done.failure
        else:
            progress.advance(size_of(done.unit, progress.unit))
        yield done
    progress.finish(f"{len(failures)} failed" if failures else "")
    if failures:
        shown = "; ".join(f"unit {unit}: {reason}" for unit, reason in sorted(failures.items())[:5])
        raise UnitsFailed(
            f"{progress.task}: {len(failures)} units failed ({shown}); run the command again to retry them"
        )


def _run_here(
    units: Iterable[AnyUnit], setup: Setup[Result], workers: Workers, report: JobReport | None
) -> Iterator[Done[Result]]:
    """Make the units in this process."""
    work = setup()
    host = socket.gethostname()
    failed = 0
    for unit in units:
        if report:
            report.write([Try(0, unit, time.monotonic())], {0: host}, failed)
        for _ in range(TRIES):
            result, failure = tried(work, unit)
            if not failure:
                break
        failed += bool(failure)
        yield Done(unit, result, failure)
        if failed >= workers.max_failures:
            break
    if report:
        report.write([], {}, failed, ended=True)


def tried(work: Callable[[AnyUnit], Result], unit: AnyUnit) -> tuple[Result | None, str]:
    """Return (result, "") of a unit, or (None, why it failed)."""
    try:
        return work(unit), ""
    except Exception as error:
        expected = isinstance(error, (OSError, ValueError))  # says enough by itself: a full disk, a changed source
        log.error("unit %s: %s: %s", unit.unit, type(error).__name__, error, exc_info=not expected)
        return None, f"{type(error).__name__}: {error}"


def size_of(unit: AnyUnit, progress_unit: str) -> int:
    """Return how much a unit counts in what the progress line counts."""
    return unit.count if progress_unit != "units" and isinstance(unit, RangeUnit) else 1


# ---- the report ----------------------------------------------------------------------------------------------------
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

    def write(self, tries: Collection[Try], hosts: dict[int, str], failed: int, ended: bool = False) -> None:
        """Write the file if it is time, or if the run has ended. `hosts` names the host of each worker."""
        if ended or time.time() - self.written >= EVERY_SECONDS:
            self.written = time.time()
            storage.write(progress_uri(self.plan.set_uri), self.state(tries, hosts, failed, ended).to_json())

    def state(self, tries: Collection[Try], hosts: dict[int, str], failed: int, ended: bool) -> JobState:
        """Return what the file says."""
        minutes = (self.written - self.started) / 60
        rate = (len(self.done) - self.before) / minutes if minutes else 0.0
        left = self.plan.num_units - len(self.done) - failed
        now = time.monotonic()
        longest = sorted(tries, key=lambda one: one.since)[:SHOWN]
        return JobState(
            digest=self.plan.digest,
            host=socket.gethostname(),
            written=round(self.written, 3),
            ended=ended,
            units=self.plan.num_units,
            done=len(self.done),
            failed=failed,
            workers=len(hosts),
            running=len(tries),
            longest=tuple((one.unit.unit, round(now - one.since), hosts.get(one.worker, "")) for one in longest),
            units_per_minute=round(rate, 3),
            seconds_left=round(left / rate * 60) if rate else None,
            totals=self.account.totals,
            filtered=dict(self.account.filtered),
            rejects=dict(self.account.rejects),
        )

    def remove(self) -> None:
        """Remove the file, which the manifest replaces."""
        storage.delete(progress_uri(self.plan.set_uri))


def progress_uri(set_uri: str) -> str:
    """Return the address of a set's progress file."""
    return storage.join(set_uri, "progress.json")
