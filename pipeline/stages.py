"""Stages: the steps of the way from documents to pictures, one object each, registered where it is defined.

The commands, `dnd run`, `submit`, `status`, `remove`, the report and the docs' table are made from the registry. A new
stage is one file, with a class and `register(…)`, and one line in infra/stages.py, which imports it. What is heavy to
import is imported in its methods, so that `dnd --help` is there at once.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from data_specs.digest import digest_of, require_same
from data_specs.records import AnyUnit, Identity, Manifest, Outcome, Receipt
from data_specs.root import name_under, record_spec
from data_specs.spec import Spec
from data_specs.storage import is_remote, join
from data_specs.text import printable
from data_specs.units import Plan, read_plan, write_plan
from pipeline.workers import ShareDone, Workers

Work = Callable[[Any], Iterable[Outcome]]  # of a unit of the stage's own kind: its samples, and what was dropped
log = logging.getLogger(__name__)


class Option(NamedTuple):
    """An option of a stage's command beside those that all have.

    Attributes:
        key: key of the spec that it sets, if any.
        least: smallest value of a number.
    """

    name: str
    help: str
    default: str | int | bool | None = None
    type: type = str
    key: str = ""
    least: int = 1


class Stage(ABC):
    """One step: what it reads and makes, and how it is run.

    Attributes:
        name: what its command is called.
        title: what it does, as `dnd --help` says it.
        reads: names of the stages whose output it reads.
        makes: where its output lies under the root.
        sections: sections of the spec without which it cannot work.
        keys: sections and keys of the spec that say how it works, as its `--help` names them.
        options: what its command takes beside what all take.
        trained_by: of a training, the section of the spec with its batch size and steps.
        computes: whether it takes GPUs where there are some.
        in_run: whether it is a step of `dnd run`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str]
    sections: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[Option, ...]] = ()
    trained_by: ClassVar[str] = ""
    computes: ClassVar[bool] = True
    in_run: ClassVar[bool] = True

    @property
    def trains(self) -> bool:
        """Whether it runs as ranks that train together, rather than as units over workers."""
        return bool(self.trained_by)

    @abstractmethod
    def run(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[str]:
        """Make the output, or finish what was interrupted; yield lines that say what is there now."""


@dataclass(frozen=True)
class Output:
    """One shard set of a stage: its plan, the spec by which it is made, and what each worker does first.

    Attributes:
        plan: of the set.
        spec: with what the stage has settled, for instance the compute batch.
        setup: picklable; loads what is needed and returns what makes a unit's samples.
    """

    plan: Plan
    spec: Spec
    setup: Callable[[], Work]


class UnitStage(Stage):
    """A stage that makes shard sets unit by unit, each of which makes one shard.

    Attributes:
        holds: "images" or "codes", as the manifests of its sets say.
        progress_unit: what its progress counts: units, or what they are ranges of.
        owned_keys: sections and keys of the root's spec that it sets: those that its identity holds.
        keeps_spec: whether the folder of its output (`leased_folder`) keeps the spec that it was made with.
        remade: what is made anew after a removal: the units that read what is gone, or the whole folder.
    """

    holds: ClassVar[Literal["images", "codes"]] = "images"
    progress_unit: ClassVar[str] = "units"
    owned_keys: ClassVar[tuple[str, ...]] = ()
    keeps_spec: ClassVar[bool] = False
    remade: ClassVar[Literal["units", "folder"]] = "units"

    @abstractmethod
    def outputs(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[Output]:
        """Yield the sets to make, each planned when it is asked for.

        Raises:
            ValueError: an input is missing or unfinished, or the root was made for something else.
        """

    def make(self, spec: Spec, root: str, workers: Workers, **options: Any) -> dict[str, Manifest]:
        """Make the sets; return their manifests by the sets' names under the root.

        Raises:
            ValueError: as `outputs`.
            UnitsFailed: units failed for good.
            ShareDone: the job's share is done, and a set is not whole yet.
        """
        from data_specs.lease import hold
        from pipeline.running import run_plan

        require_writable(root, self.leased(spec, root, **options), self.name, shared=True)
        made: dict[str, Manifest] = {}
        for output in self.outputs(spec, root, workers, **options):
            plan = output.plan
            name = name_under(root, plan.set_uri)
            work = partial(committing, output.setup, plan.set_uri, plan.digest)
            task = f"{self.name} {name}"
            with hold(join(root, leased_folder(name)), f"dnd {self.name}", shared=True):
                if self.keeps_spec:
                    record_spec(output.spec, root, leased_folder(name), self.owned_keys)
                manifest = run_plan(plan, work, workers, self.holds, task, self.progress_unit)
                made[name] = self.corrected(plan, manifest)
        if left := [name for name, manifest in made.items() if not manifest.complete]:
            raise ShareDone(f"part {workers.share} is done; {', '.join(left)} will be whole when all parts are")
        return made

    def leased(self, spec: Spec, root: str, **options: Any) -> str:
        """Return the folder under the root (`leased_folder`) of the sets that `outputs` will yield."""
        return leased_folder(self.makes)

    def run(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[str]:
        made = self.make(spec, root, workers, **options)
        for name, manifest in made.items():
            yield f"{name}: {totals(manifest)}"
        yield from self.finish(spec, root, workers, **options)

    def corrected(self, plan: Plan, manifest: Manifest) -> Manifest:
        """Return a set's manifest, after what is still to be put right in the set while its lease is held."""
        return manifest

    def finish(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[str]:
        """Make what follows of the sets once they are whole; yield lines that say so."""
        yield from ()


def leased_folder(set_name: str) -> str:
    """Return the folder under the root that keeps a set's spec, and whose lease its writers hold.

    Of samples it is that of their name; a set at an address of its own has its own folder.
    """
    if is_remote(set_name) or set_name.startswith("/"):
        return set_name.rpartition("/")[0]
    folders = set_name.split("/")
    return "/".join(folders[:2]) if folders[0] == "samples" else folders[0]


def require_writable(root: str, folder: str, stage: str, shared: bool = False) -> None:
    """Refuse to begin a stage where another writes or ROOT/code.json is damaged, before anything else is written.

    A dead lease is taken away, so that who holds the folder next need not watch it again.
    """
    from data_specs.code_version import read_history
    from data_specs.lease import hold, holder_of

    read_history(root)
    if holder_of(join(root, folder)):
        with hold(join(root, folder), f"dnd {stage}", shared):
            pass


def totals(manifest: Manifest) -> str:
    """Return a line about a shard set."""
    total = manifest.totals
    return (
        f"{total.written} samples in {len(manifest.shardlist)} shards "
        f"({total.filtered} filtered, {total.rejected} rejected)"
    )


def planned(
    set_uri: str, identity: Identity, units: Iterable[AnyUnit], remedy: str = "", places: tuple[str, ...] = ()
) -> Plan:
    """Return the plan of a set: the stored one, or a new one of these units.

    Args:
        places: where the inputs lie, as a new plan says.
        remedy: what this stage offers where the stored one was made for something else, beside going back.

    Raises:
        ValueError: the stored one was made for something else.
    """
    if plan := read_plan(set_uri):
        require_same(set_uri, plan.identity, identity, remedy)
        return plan
    return write_plan(set_uri, digest_of(identity), identity, units, places)


def committing(setup: Callable[[], Work], set_uri: str, digest: str) -> Callable[[AnyUnit], Receipt]:
    """Set up, once in each worker, and return what makes and commits a unit: `unit -> receipt`."""
    from data_specs.receipts import commit

    work = setup()

    def run(unit: AnyUnit) -> Receipt:
        receipt = commit(set_uri, digest, unit.unit, work(unit))
        for one in receipt.rejected:
            if one.reason.environmental:  # the receipt has all others too
                said = f"unit {unit.unit}: {one.key} ({one.source}): {one.reason}: {one.detail}"
                log.warning("%s", printable(said))
        return receipt

    return run


# ---- the registry --------------------------------------------------------------------------------------------------
AnyStage = TypeVar("AnyStage", bound=Stage)
_STAGES: dict[str, Stage] = {}
VIEWS: dict[str, str] = {}  # what shows or names samples of a root -> the command that makes it


def register(stage: AnyStage) -> AnyStage:
    """Add a stage to the registry, and return it."""
    _STAGES[stage.name] = stage
    return stage


def registered() -> list[Stage]:
    """Return all stages, each behind those that it reads."""
    graph = {name: [one for one in stage.reads if one in _STAGES] for name, stage in _STAGES.items()}
    return [_STAGES[name] for name in TopologicalSorter(graph).static_order()]


def find(name: str) -> Stage | None:
    """Return the stage of a name, None where no file of this process defines it."""
    return _STAGES.get(name)
