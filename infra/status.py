"""What `dnd status` says of a root: two or three small reads a shard set, from any machine, also while jobs run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

from data_specs import storage
from data_specs.manifest import summarise
from data_specs.metrics import read_rows
from data_specs.records import JobState, Manifest, Record
from data_specs.units import Plan, read_plan
from data_specs.verify import find_shard_sets
from pipeline.board import progress_uri
from pipeline.stages import registered

_AnyRecord = TypeVar("_AnyRecord", bound=Record)
SILENT_SECONDS = 90


def status_lines(root: str) -> Iterator[str]:
    """Lines for each shard set under a root, then the training stages' last logged step."""
    for set_uri in find_shard_sets(root):
        plan = read_plan(set_uri)
        if plan:
            yield from _set_lines(root, plan)
    for stage in registered():
        if stage.trains and (rows := read_rows(storage.join(root, stage.makes, "metrics.jsonl"))):
            yield f"{stage.makes}: step {rows[-1]['step']}"


def _set_lines(root: str, plan: Plan) -> Iterator[str]:
    state, job = _state(plan)
    name, totals = plan.set_uri.removeprefix(root.rstrip("/") + "/"), state.totals
    yield (
        f"{name}: {totals.units}/{plan.num_units} units done, {_failed(plan, state, job)} failed; "
        f"{totals.written} written, {totals.filtered} filtered, {totals.rejected} rejected"
    )
    if job:
        yield from _running(job)
    for kind, counts in (("filtered", state.filtered), ("rejects", state.rejects)):
        for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
            yield f"    {kind}: {count} {reason}"


def _state(plan: Plan) -> tuple[Manifest | JobState, JobState | None]:
    """A set's account, and what its running job says of itself.

    The account is from the manifest if it is whole, from what the job wrote, else from all receipts.
    """
    manifest = _read(Manifest, storage.join(plan.set_uri, "manifest.json"))
    if manifest and manifest.complete and manifest.totals.units == plan.num_units:
        return manifest, None
    job = _read(JobState, progress_uri(plan.set_uri))
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


def _read(kind: type[_AnyRecord], uri: str) -> _AnyRecord | None:
    try:
        return kind.parse(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return None
