"""`dnd render`: documents to image shards, ROOT/images/{train,val}."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs import digest, storage
from data_specs.records import Identity, Manifest, Outcome, SourceUnit
from data_specs.root import restored_on_refusal
from data_specs.scratch import scratch_folder
from data_specs.sources.images import read_class_names
from data_specs.sources.planning import (
    SPLITS,
    class_names,
    list_units,
    listing_digest,
    places_of,
    read_units,
    relocated,
)
from data_specs.spec import Spec
from data_specs.text import say
from data_specs.units import Plan, extend_plan, read_plan
from pipeline.stages import Option, Output, UnitStage, Work, planned, register
from pipeline.workers import Workers

if TYPE_CHECKING:
    from pipeline.render import Renderer

REMEDY = "add what is new in render.sources with --extend, "


class Render(UnitStage):
    """Documents to pictures with what stands on them."""

    name = "render"
    title = "Documents -> image shards (ROOT/images/{train,val}). Run it again to finish what was interrupted."
    makes = "images/{train,val}"
    sections = ("render",)
    keys = owned_keys = ("render", "shape.image_size", "seed")
    keeps_spec = True
    computes = False
    options = (
        Option("extend", "list the sources anew and add what is new, also of a changed spec", False, bool),
        Option("retry-rejected", "extend, and try documents again that were rejected as a whole", False, bool),
    )

    def corrected(self, plan: Plan, manifest: Manifest) -> Manifest:
        """Return the manifest without what was removed while this job stood still and its lease lapsed."""
        from pipeline.removal import remove_again

        return remove_again(plan) or manifest

    def outputs(
        self, spec: Spec, root: str, workers: Workers, extend: bool = False, retry_rejected: bool = False, **_: Any
    ) -> Iterator[Output]:
        """Yield the sets of both splits; extended ones keep all that is there as it is."""
        alone = workers.share.total == 1
        plans = _extended(spec, root, retry_rejected, alone) if extend or retry_rejected else _plans(spec, root, alone)
        for split in SPLITS:
            moved = moved_since(plans[split], spec, root)
            yield Output(plans[split], spec, partial(_setup, spec, plans[split].set_uri, moved))


def _setup(spec: Spec, set_uri: str, moved: Sequence[tuple[str, str]]) -> Work:
    from pipeline.render import Renderer

    return rendering(Renderer(spec), set_uri, moved)


def moved_since(plan: Plan, spec: Spec, root: str) -> list[tuple[str, str]]:
    """Return the old place and the new place of each input of a plan that lies elsewhere now."""
    places = zip(plan.places[1:], places_of(spec.render, _inputs_uri(root))[1:])
    return [*_inputs_moved(root, plan), *((old, new) for old, new in places if old not in (new, ""))]


def _inputs_moved(root: str, *plans: Plan) -> list[tuple[str, str]]:
    """(old place, new place) of what was made of the sources, for each place where plans say that the root lay."""
    new = _inputs_uri(root)
    return [(old, new) for plan in plans for old in plan.first_places if old not in (new, "")]


def rendering(renderer: Renderer, set_uri: str, moved: Sequence[tuple[str, str]] = ()) -> Work:
    """Return what renders a unit; what was removed from the set once is left out."""
    from pipeline.removal import outcomes_without, read_removed, unit_without

    images_uri, _, split = set_uri.rpartition("/")
    removed = read_removed(images_uri)

    def work(unit: SourceUnit) -> Iterator[Outcome]:
        there = relocated(unit_without(unit, removed), moved)
        return outcomes_without(split, unit, removed, renderer.render(there))

    return work


def _plans(spec: Spec, root: str, alone: bool) -> dict[str, Plan]:
    """Return the stored plans of both splits; those that are missing are made from one listing of the sources.

    Sources that have moved are listed again: they must hold what they held when the set was planned.
    """
    stored = _stored(root)
    for split, plan in stored.items():
        digest.require_same(plan.set_uri, plan.identity, _identity(spec, split, plan.identity.inputs), REMEDY)
    places = places_of(spec.render, _inputs_uri(root))
    kept = {split: plan for split, plan in stored.items() if plan.places[1:] == places[1:]}
    if len(kept) == len(SPLITS):
        return kept
    with scratch_folder() as folder:
        listed, places = _list_sources(spec, root, folder, alone, is_whole=len(stored) == len(SPLITS))
        return {split: kept.get(split) or _planned(spec, root, split, listed[split], places) for split in SPLITS}


def _planned(spec: Spec, root: str, split: str, listed: Path, places: tuple[str, ...]) -> Plan:
    identity = _identity(spec, split, _listing_input(listed))
    return planned(storage.join(root, "images", split), identity, read_units(listed), REMEDY, places)


def _extended(spec: Spec, root: str, retry_rejected: bool, alone: bool) -> dict[str, Plan]:
    """Return the stored plans, each with one more part for what the sources hold now and no unit has.

    A split that was extended for this spec already and is not done yet stays as it is: what was interrupted goes on.
    """
    from data_specs.receipts import valid_receipts
    from pipeline.extend import require_extension

    stored = _stored(root)
    if len(stored) < len(SPLITS):
        raise ValueError(f"{root}/images: there is no image set to extend; run `dnd render` without --extend first")
    done = {split: sum(1 for _ in valid_receipts(p.set_uri, p.digest)) == p.num_units for split, p in stored.items()}
    places = places_of(spec.render, _inputs_uri(root))
    for split, plan in stored.items():
        wanted = _identity(spec, split, plan.identity.inputs)
        require_extension(plan, wanted)
        if not done[split] and (plan.identity, plan.places[1:]) != (wanted, places[1:]):
            raise ValueError(f"{plan.set_uri}: not all units are done; run `dnd render` as before, then extend")
    with scratch_folder() as folder:
        listed, places = _list_sources(spec, root, folder, alone)
        moved = _inputs_moved(root, *stored.values())
        grow = partial(_grow, spec, stored, places, moved=moved, retry_rejected=retry_rejected)
        return {split: grow(split, listed[split]) if done[split] else plan for split, plan in stored.items()}


def _grow(
    spec: Spec,
    plans: dict[str, Plan],
    places: tuple[str, ...],
    split: str,
    listed: Path,
    moved: Sequence[tuple[str, str]],
    retry_rejected: bool,
) -> Plan:
    """Return the plan with a part for new documents; as it is where there are none and the spec is the same."""
    from pipeline.extend import new_units

    identity = _identity(spec, split, _listing_input(listed))
    plan = plans[split]
    other = plans["val" if split == "train" else "train"]
    units = new_units(plan, other, read_units(listed), spec.render.documents_per_unit, retry_rejected, moved)
    first = list(itertools.islice(units, 1))
    if not first and plan.identity == identity:
        return plan
    grown = extend_plan(plan, identity, itertools.chain(first, units), places)
    say(f"images/{split}: {grown.num_units - plan.num_units} units added", sys.stderr)
    return grown


def _stored(root: str) -> dict[str, Plan]:
    """Return the plans under a root, by split."""
    return {split: plan for split in SPLITS if (plan := read_plan(storage.join(root, "images", split)))}


def _inputs_uri(root: str) -> str:
    """Where what is made of the sources lies."""
    return storage.absolute(storage.join(root, "inputs"))


def _list_sources(
    spec: Spec, root: str, folder: Path, alone: bool, is_whole: bool = False
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """List the sources; return the file of each split's units, in a scratch folder, and where the documents lie.

    Args:
        alone: whether no other job shares the work: a refused one takes back what was made of the sources, by which
            others may have planned meanwhile.
        is_whole: whether all is planned: what the sources hold is only compared, and nothing is kept under the root.
    """
    inputs_uri = storage.join(str(folder), "inputs") if is_whole else _inputs_uri(root)
    with restored_on_refusal(inputs_uri) if alone else nullcontext():
        sources = [source.prepare(inputs_uri) for source in spec.render.sources]
        units = list_units(spec.render, sources, folder)
        if not is_whole:
            _write_classes(storage.join(root, "images", "classes.json"), class_names(sources))
    return units, places_of(spec.render, _inputs_uri(root), sources)


def _write_classes(uri: str, names: dict[int, str]) -> None:
    """Write the classes' names; more may come behind those there.

    Raises:
        ValueError: a class would change its number.
    """
    data = json.dumps(names).encode()
    if not names or storage.create(uri, data):
        return
    there = read_class_names(uri)
    if moved := [name for number, name in there.items() if names.get(number) != name]:
        raise ValueError(f"{uri}: class {moved[0]} would change its number; new classes must sort behind the old ones")
    if len(there) < len(names):
        storage.write(uri, data)


def _listing_input(units: Path) -> dict[str, str]:
    """Return the input of a split: what its sources hold."""
    return {"documents of render.sources": listing_digest(units)}


def _identity(spec: Spec, split: str, inputs: dict[str, str]) -> Identity:
    """Return what the images of a split depend on."""
    from pipeline.render import versions

    render = spec.render.model_dump(mode="json")
    if spec.render.pages.reduction == "bicubic":  # sets made before there was such a key go on
        del render["pages"]["reduction"]
    render["sources"] = [one.model_dump(mode="json", exclude=set(one.places)) for one in spec.render.sources]
    return Identity(
        stage="render",
        split=split,
        spec={"image_size": spec.shape.image_size, "render": render},
        inputs=inputs,
        seed=spec.seed,
        versions=versions(),
    )


RENDER = register(Render())
