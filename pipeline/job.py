"""`dnd render`: documents to image shards, ROOT/images/{train,val}."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs import digest, storage
from data_specs.records import Identity, Manifest, Outcome, SourceUnit
from data_specs.scratch import scratch_folder
from data_specs.source import Source
from data_specs.sources.planning import SPLITS, class_names, list_units, read_units
from data_specs.spec import Spec
from data_specs.text import say
from data_specs.units import Plan, extend_plan, read_plan, write_plan
from pipeline.stages import Option, Output, UnitStage, Work, register
from pipeline.workers import Workers

if TYPE_CHECKING:
    from pipeline.render import Renderer


class Render(UnitStage):
    """Documents to pictures with what stands on them."""

    name = "render"
    title = "Documents -> image shards (ROOT/images/{train,val}). Run it again to finish what was interrupted."
    makes = "images/{train,val}"
    parts = answers_for = ("render",)
    keys = ("render", "shape.image_size", "seed")
    keeps_spec = True
    computes = False
    options = (
        Option("extend", "list the sources anew and add what is new, also of a changed spec", False, bool),
        Option("retry-rejected", "extend, and try documents again that were rejected as a whole", False, bool),
    )

    def make(self, spec: Spec, root: str, workers: Workers, **options: Any) -> dict[str, Manifest]:
        """The sets, as `UnitStage.make`, without what was removed while this job stood still and its lease lapsed."""
        from pipeline.removal import take_out_again

        made = super().make(spec, root, workers, **options)
        return {name: take_out_again(storage.join(root, name)) or manifest for name, manifest in made.items()}

    def outputs(
        self, spec: Spec, root: str, workers: Workers, extend: bool = False, retry_rejected: bool = False, **_: Any
    ) -> Iterator[Output]:
        """The sets of both splits; extended ones keep all that is there as it is."""
        plans = _extended(spec, root, retry_rejected) if extend or retry_rejected else _plans(spec, root)
        for split in SPLITS:
            yield Output(plans[split], spec, partial(_setup, spec, plans[split].set_uri))


def _setup(spec: Spec, set_uri: str) -> Work:
    from pipeline.render import Renderer

    return rendering(Renderer(spec), set_uri)


def rendering(renderer: Renderer, set_uri: str) -> Work:
    """What renders a unit; what was removed from the set once is left out."""
    from pipeline.extend import without
    from pipeline.removal import read_removed, rendered_without

    images_uri, _, split = set_uri.rpartition("/")
    removed = read_removed(images_uri)
    of_units = removed.of_units()

    def work(unit: SourceUnit) -> Iterator[Outcome]:
        here = of_units.get((split, unit.unit), removed._replace(samples=frozenset()))
        return rendered_without(unit, here, renderer.render(without(unit, here.holds_document)))

    return work


def _plans(spec: Spec, root: str) -> dict[str, Plan]:
    """The stored plans of both splits; those that are missing are made from one listing of the sources."""
    set_uris = {split: storage.join(root, "images", split) for split in SPLITS}
    stored = {split: read_plan(uri) for split, uri in set_uris.items()}
    for split, plan in stored.items():
        if plan:
            remedy = "add what is new in render.sources with --extend, "
            digest.require_same(plan.set_uri, plan.identity, _identity(spec, split), remedy)
    if all(stored.values()):
        return {split: plan for split, plan in stored.items() if plan}
    with scratch_folder() as folder:
        units = list_units(spec.render, _prepare(spec, root), folder)
        return {split: stored[split] or _write(spec, uri, split, units[split]) for split, uri in set_uris.items()}


def _extended(spec: Spec, root: str, retry_rejected: bool) -> dict[str, Plan]:
    """The stored plans, each with one more part for what the sources hold now and no unit has.

    A split that was extended for this spec already and is not done yet stays as it is: what was interrupted goes on.
    """
    from data_specs.receipts import valid_receipts
    from pipeline.extend import require_extension

    plans = {split: read_plan(storage.join(root, "images", split)) for split in SPLITS}
    if not all(plans.values()):
        raise ValueError(f"{root}/images: there is no image set to extend; run `dnd render` without --extend first")
    stored = {split: plan for split, plan in plans.items() if plan}
    done = {split: sum(1 for _ in valid_receipts(p.set_uri, p.digest)) == p.num_units for split, p in stored.items()}
    for split, plan in stored.items():
        require_extension(plan, _identity(spec, split))
        if not done[split] and plan.identity != _identity(spec, split):
            raise ValueError(f"{plan.set_uri}: not all units are done; run `dnd render` as before, then extend")
    with scratch_folder() as folder:
        listed = list_units(spec.render, _prepare(spec, root), folder)
        grow = partial(_grow, spec, stored, retry_rejected=retry_rejected)
        return {split: grow(split, listed[split]) if done[split] else plan for split, plan in stored.items()}


def _grow(spec: Spec, plans: dict[str, Plan], split: str, listed: Path, retry_rejected: bool) -> Plan:
    """The plan with a part for new documents; as it is where there are none and the spec is the same."""
    from pipeline.extend import new_units

    identity, plan = _identity(spec, split), plans[split]
    other = plans["val" if split == "train" else "train"]
    units = new_units(plan, other, read_units(listed), spec.render.documents_per_unit, retry_rejected)
    first = list(itertools.islice(units, 1))
    if not first and plan.identity == identity:
        return plan
    grown = extend_plan(plan, identity, itertools.chain(first, units))
    say(f"images/{split}: {grown.num_units - plan.num_units} units added", sys.stderr)
    return grown


def _prepare(spec: Spec, root: str) -> list[Source]:
    """The spec's sources as workers read them; the names of their classes are kept beside the sets."""
    assert spec.render, "a spec without render is refused before"
    sources = [source.prepare(storage.join(root, "inputs")) for source in spec.render.sources]
    if names := class_names(sources):
        _keep_classes(storage.join(root, "images", "classes.json"), names)
    return sources


def _keep_classes(uri: str, names: dict[int, str]) -> None:
    """Writes the classes' names; more may come behind those there. Raises ValueError if one would change its number."""
    data = json.dumps(names).encode()
    if storage.create_if_absent(uri, data):
        return
    there = json.loads(storage.read_text(uri))
    if moved := [name for number, name in there.items() if names.get(int(number)) != name]:
        raise ValueError(f"{uri}: class {moved[0]} would change its number; new classes must sort behind the old ones")
    if len(there) < len(names):
        storage.write_bytes(uri, data)


def _write(spec: Spec, set_uri: str, split: str, units: Path) -> Plan:
    identity = _identity(spec, split)
    return write_plan(set_uri, digest.digest_of(identity), identity, read_units(units))


def _identity(spec: Spec, split: str) -> Identity:
    """What the images of a split depend on."""
    from pipeline.render import versions

    return Identity(
        stage="render",
        split=split,
        spec={"image_size": spec.shape.image_size, "render": spec.render.model_dump(mode="json")},
        seed=spec.seed,
        versions=versions(),
    )


RENDER = register(Render())
