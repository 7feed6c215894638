"""What `dnd status` says of a root: two or three small reads a shard set, from any machine, also while jobs run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import infra.stages  # noqa: F401 (the registry is filled)
from data_specs import storage
from data_specs.lease import holder, is_alive
from data_specs.manifest import summarise
from data_specs.metrics import read_rows
from data_specs.records import Failure, JobState, Manifest, Record, SourceUnit
from data_specs.root import spec_of
from data_specs.text import printable
from data_specs.units import Plan, read_plan
from data_specs.verify import find_shard_sets
from pipeline.board import progress_uri
from pipeline.stages import Stage, lease_home, registered

_AnyRecord = TypeVar("_AnyRecord", bound=Record)
SILENT_SECONDS = 90
FIGURES = ("bits_per_code", "psnr", "loss")  # of a row of a training, the first that there is


def status_lines(root: str) -> Iterator[str]:
    """Lines for each shard set under a root, then for the trainings and who writes; none where there is nothing.

    What is damaged is a line, never an error.
    """
    homes = {stage.makes for stage in registered() if stage.trains}
    for set_uri in find_shard_sets(root):
        homes.add(lease_home(set_uri.removeprefix(root.rstrip("/") + "/")))
        yield from _unless_damaged(partial(_plan_lines, root, set_uri))
    for stage in registered():
        if stage.trains:
            yield from _unless_damaged(partial(_training_lines, root, stage))
    for home in sorted(homes):
        yield from _unless_damaged(partial(_lease_lines, root, home))


def _unless_damaged(lines: Callable[[], Iterator[str]]) -> Iterator[str]:
    try:
        yield from map(printable, lines())
    except ValueError as error:
        yield printable(str(error))


def _plan_lines(root: str, set_uri: str) -> Iterator[str]:
    if plan := read_plan(set_uri):
        yield from _set_lines(root, plan)


def _training_lines(root: str, stage: Stage) -> Iterator[str]:
    """Step of how many, the last figure, rate and time left; or that it has begun, or came from elsewhere."""
    folder = storage.join(root, stage.makes)
    rows = [row for row in read_rows(storage.join(folder, "metrics.jsonl")) if "images_per_second" in row]
    if not rows:
        if storage.exists(storage.join(folder, "stage.json")):
            yield f"{stage.makes}: begun, no step logged yet"
        elif next(storage.list_files(folder), None):
            yield f"{stage.makes}: imported"
        return
    last, part = rows[-1], getattr(spec_of(root, stage.makes), stage.batch)
    step, steps = int(last["step"]), int(part.steps)
    figure = next((f", {last[name]:.3f} {name.replace('_', ' ')}" for name in FIGURES if name in last), "")
    rate = float(last["images_per_second"]) / part.batch_size
    left = f", about {(steps - step) / rate / 60:.0f} min left" if rate > 0 and step < steps else ""
    yield f"{stage.makes}: step {step} of {steps}{figure}, {rate:.3g} steps/s{left}"


def _lease_lines(root: str, home: str) -> Iterator[str]:
    by = holder(storage.join(root, home))
    if by and is_alive(by):
        yield f"{home}: `{by.command}` writes here (host {by.host}, process {by.pid})"


def _set_lines(root: str, plan: Plan) -> Iterator[str]:
    faults = list[str]()
    state, job = _state(plan, faults)
    name, totals = plan.set_uri.removeprefix(root.rstrip("/") + "/"), state.totals
    yield (
        f"{name}: {totals.units}/{plan.num_units} units done, {_failed(plan, state, job)} failed; "
        f"{totals.written} written, {totals.filtered} filtered, {totals.rejected} rejected"
    )
    yield from (f"    {fault}" for fault in faults)
    if job:
        yield from _running(job)
    for kind, counts in (("filtered", state.filtered), ("rejects", state.rejects)):
        for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
            yield f"    {kind}: {count} {reason}"
    if state.totals.units < plan.num_units:
        yield from _failure_lines(plan)


def _failure_lines(plan: Plan) -> Iterator[str]:
    """Why units failed, with a document of each."""
    for file in storage.list_files(plan.set_uri):
        if file.uri.endswith(".failed.json") and (failure := _read(Failure, file.uri, [])):
            unit = next((unit for unit in plan.units() if unit.unit == failure.unit), None)
            names = [document.id for document in unit.documents] if isinstance(unit, SourceUnit) else []
            yield f"    unit {failure.unit} failed: {failure.reason}{f' (documents from {names[0]})' if names else ''}"


def _state(plan: Plan, faults: list[str]) -> tuple[Manifest | JobState, JobState | None]:
    """A set's account, and what its running job says of itself.

    The account is from the manifest if it is whole, from what the job wrote, else from all receipts; what is wrong
    with the first two is added to `faults`.
    """
    manifest = _read(Manifest, storage.join(plan.set_uri, "manifest.json"), faults)
    if manifest and manifest.complete and manifest.totals.units == plan.num_units:
        return manifest, None
    job = _read(JobState, progress_uri(plan.set_uri), faults)
    if job and job.units == plan.num_units:
        return job, job
    return summarise(plan, ""), None


def _failed(plan: Plan, state: Manifest | JobState, job: JobState | None) -> int:
    if job:
        return job.failed
    if state.totals.units == plan.num_units:
        return 0
    return sum(1 for file in storage.list_files(plan.set_uri) if file.uri.endswith(".failed.json"))


def _running(job: JobState) -> Iterator[str]:
    """What a job says of itself: workers, rate, time left, the longest units; or how long it has been silent."""
    silent = time.time() - job.written
    if job.ended or silent > SILENT_SECONDS:
        ended = "the run has ended" if job.ended else f"nothing heard from {job.host} for {silent / 60:.0f} min"
        yield f"    {ended}: run the command again to finish"
        return
    left = "" if job.seconds_left is None else f", about {job.seconds_left / 60:.0f} min left"
    yield f"    {job.running} units running on {job.workers} workers, {job.units_per_minute:.1f} units/min{left}"
    for unit, seconds, host in job.longest[:3]:
        yield f"    unit {unit}: for {seconds} s on {host}"


def _read(kind: type[_AnyRecord], uri: str, faults: list[str]) -> _AnyRecord | None:
    """A record, None where there is none or it is damaged: the account is then made from what is whole."""
    try:
        return kind.parse(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return None
    except ValueError as error:
        faults.append(str(error))
        return None
