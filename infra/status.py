"""What `dnd status` says of a root: two or three small reads a shard set, from any machine, also while jobs run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, TypeVar

from pydantic import Field

import infra.stages  # noqa: F401 (the registry is filled)
from data_specs import storage
from data_specs.lease import holder_of, is_alive
from data_specs.manifest import summarise
from data_specs.metrics import read_rows
from data_specs.records import Failure, JobState, Manifest, Reason, Record, SourceUnit
from data_specs.root import name_under, spec_of
from data_specs.text import printable
from data_specs.units import Plan, require_plan
from data_specs.verify import find_shard_sets
from pipeline.running import progress_uri
from pipeline.stages import Stage, leased_folder, registered

_AnyRecord = TypeVar("_AnyRecord", bound=Record)
SILENT_SECONDS = 90
COUNTED = {"digest", "totals", "filtered", "rejects"}  # of a job, what its set says already
FIGURES = ("bits_per_code", "psnr", "loss")  # of a row of a training, the first that there is


class FailedUnit(Record):
    """A unit that failed for good, and the first of its documents."""

    unit: int
    reason: str
    document: str = ""


class SetStatus(Record):
    """A shard set: its counts, what its running job says of itself (see JobState), failures, and damaged files."""

    group: ClassVar[str] = "sets"
    name: str
    units: int
    done: int
    failed: int
    written: int
    filtered: int
    rejected: int
    reasons: dict[str, dict[str, int]]
    job: JobState | None
    failures: list[FailedUnit]
    faults: list[str]

    def lines(self) -> Iterator[str]:
        """Yield the lines as the terminal shows them."""
        yield (
            f"{self.name}: {self.done}/{self.units} units done, {self.failed} failed; "
            f"{self.written} written, {self.filtered} filtered, {self.rejected} rejected"
        )
        yield from (f"    {fault}" for fault in self.faults)
        if self.job:
            yield from _running(self.job)
        for kind, counts in self.reasons.items():
            for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
                yield f"    {kind}: {count} {reason}"
        for one in self.failures:
            documents = f" (documents from {one.document})" if one.document else ""
            yield f"    unit {one.unit} failed: {one.reason}{documents}"


class TrainingStatus(Record):
    """A training: its state, "imported", "begun", "running" or "finished", and its last logged step."""

    group: ClassVar[str] = "trainings"
    name: str
    state: str
    step: int | None = None
    steps: int | None = None
    figures: dict[str, float] = Field({})
    steps_per_second: float = 0.0
    seconds_left: float | None = None

    def lines(self) -> Iterator[str]:
        """Yield the lines as the terminal shows them."""
        if self.step is None:
            yield f"{self.name}: {'begun, no step logged yet' if self.state == 'begun' else self.state}"
            return
        figure = "".join(f", {value:.3f} {name.replace('_', ' ')}" for name, value in self.figures.items())
        left = "" if self.seconds_left is None else f", about {self.seconds_left / 60:.0f} min left"
        finished = "finished, " if self.state == "finished" else ""
        rate = f"{self.steps_per_second:.3g} steps/s"
        yield f"{self.name}: {finished}step {self.step} of {self.steps}{figure}, {rate}{left}"


class Writer(Record):
    """Who writes in a folder now."""

    group: ClassVar[str] = "writers"
    name: str
    command: str
    host: str
    pid: int

    def lines(self) -> Iterator[str]:
        """Yield the lines as the terminal shows them."""
        yield f"{self.name}: `{self.command}` writes here (host {self.host}, process {self.pid})"


Status = SetStatus | TrainingStatus | Writer


def status_lines(root: str) -> Iterator[str]:
    """Yield the lines for each shard set under a root, then for the trainings and who writes.

    A root that holds nothing has no lines.
    """
    for status in statuses(root):
        yield from map(printable, [status] if isinstance(status, str) else status.lines())


def status_of(root: str) -> dict[str, list[object]]:
    """Return the status of a root for programs, as `dnd status --json` prints it.

    Returns:
        A dict of the lists `sets`, `trainings`, `writers` and `faults`.
    """
    found: dict[str, list[object]] = {"sets": [], "trainings": [], "writers": [], "faults": []}
    for status in statuses(root):
        if isinstance(status, str):
            found["faults"].append(status)
        else:
            found[status.group].append(status.model_dump(mode="json", exclude={"job": COUNTED}))
    return found


def statuses(root: str) -> Iterator[Status | str]:
    """Yield everything that there is to say of a root; what is damaged is a line of its own, never an error."""
    folders = {stage.makes for stage in registered() if stage.trains}
    for set_uri in find_shard_sets(root):
        folders.add(leased_folder(name_under(root, set_uri)))
        yield from _unless_damaged(partial(_set_status, root, set_uri))
    for stage in registered():
        if stage.trains:
            yield from _unless_damaged(partial(_training_status, root, stage))
    for folder in sorted(folders):
        yield from _unless_damaged(partial(_writer, root, folder))


def _unless_damaged(look: Callable[[], Status | None]) -> Iterator[Status | str]:
    try:
        if status := look():
            yield status
    except ValueError as error:
        yield str(error)


def _training_status(root: str, stage: Stage) -> TrainingStatus | None:
    folder = storage.join(root, stage.makes)
    rows = [row for row in read_rows(storage.join(folder, "metrics.jsonl")) if "images_per_second" in row]
    if not rows:
        if storage.exists(storage.join(folder, "stage.json")):
            return TrainingStatus(name=stage.makes, state="begun")
        return TrainingStatus(name=stage.makes, state="imported") if next(storage.list_files(folder), None) else None
    last = rows[-1]
    section = getattr(spec_of(root, stage.makes), stage.trained_by)
    step = int(last["step"])
    steps = int(section.steps)
    rate = float(last["images_per_second"]) / section.batch_size
    return TrainingStatus(
        name=stage.makes,
        state="finished" if step >= steps and storage.exists(storage.join(folder, "done")) else "running",
        step=step,
        steps=steps,
        figures=next(({name: float(last[name])} for name in FIGURES if isinstance(last.get(name), int | float)), {}),
        steps_per_second=rate,
        seconds_left=(steps - step) / rate if rate > 0 and step < steps else None,
    )


def _writer(root: str, folder: str) -> Writer | None:
    holder = holder_of(storage.join(root, folder))
    if holder is None or not is_alive(holder):
        return None
    return Writer(name=folder, command=holder.command, host=holder.host, pid=holder.pid)


def _set_status(root: str, set_uri: str) -> SetStatus:
    plan = require_plan(set_uri)
    faults = list[str]()
    state, job = _state(plan, faults)
    totals = state.totals
    failed = _failure_files(set_uri) if totals.units < plan.num_units else []
    return SetStatus(
        name=name_under(root, set_uri),
        units=plan.num_units,
        done=totals.units,
        failed=job.failed if job else len(failed),
        written=totals.written,
        filtered=totals.filtered,
        rejected=totals.rejected,
        reasons={"filtered": _plain(state.filtered), "rejects": _plain(state.rejects)},
        job=job,
        failures=list(_failures(plan, failed)),
        faults=faults,
    )


def _plain(counts: Mapping[Reason, int]) -> dict[str, int]:
    return {str(reason): count for reason, count in counts.items()}


def _failure_files(set_uri: str) -> list[str]:
    return [file.uri for file in storage.list_files(set_uri) if file.uri.endswith(".failed.json")]


def _failures(plan: Plan, uris: Iterable[str]) -> Iterator[FailedUnit]:
    for uri in uris:
        if failure := _read(Failure, uri, []):
            unit = next((unit for unit in plan.units() if unit.unit == failure.unit), None)
            names = [document.id for document in unit.documents] if isinstance(unit, SourceUnit) else []
            yield FailedUnit(unit=failure.unit, reason=failure.reason, document=names[0] if names else "")


def _state(plan: Plan, faults: list[str]) -> tuple[Manifest | JobState, JobState | None]:
    """Return a set's account, and what its running job reports, or None where no job runs.

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


def _running(job: JobState) -> Iterator[str]:
    """Yield what a job reports: workers, rate, time left, the longest units; or how long it has been silent."""
    silent = time.time() - job.written
    if job.ended or silent > SILENT_SECONDS:
        ended = "the run has ended" if job.ended else f"nothing heard from {job.host} for {silent / 60:.0f} min"
        yield f"    {ended}: run the command again to finish"
        return
    left = "" if job.seconds_left is None else f", about {job.seconds_left / 60:.0f} min left"
    rate = f"{job.units_per_minute:.1f} units/min"
    yield f"    {job.running} units running on {job.workers} workers, {rate}{left}"
    for unit, seconds, host in job.longest[:3]:
        yield f"    unit {unit}: for {seconds} s on {host}"


def _read(record: type[_AnyRecord], uri: str, faults: list[str]) -> _AnyRecord | None:
    """Read a record; return None where it is missing or damaged.

    The account is then made from what is whole.
    """
    try:
        return record.parse(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return None
    except ValueError as error:
        faults.append(str(error))
        return None
