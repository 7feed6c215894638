"""Plans rendering and puts it on Ray: `dnd render SPEC --root ROOT` makes ROOT/images/{train,val}."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from data_specs import digest, storage
from data_specs.manifest import Manifest
from data_specs.receipts import Receipt, commit
from data_specs.spec import Spec
from data_specs.units import Plan, Unit, read_plan, write_plan
from pipeline.render import Renderer, versions
from pipeline.runner import Stage, Workers, run_plan
from pipeline.sources import class_names, cut, prepare

SPLITS = ("train", "val")


def render(spec: Spec, root: str, workers: Workers) -> dict[str, Manifest]:
    """Renders every source of the spec; returns the manifests by split.

    Raises ValueError for an empty source or a root made for another spec, UnitsFailed where units failed for good.
    """
    plans = _plans(spec, root)
    run = lambda split: run_plan(  # noqa: E731
        plans[split], partial(_setup, spec, plans[split]), workers, "images", f"render {split}"
    )
    return {split: run(split) for split in SPLITS}


def _plans(spec: Spec, root: str) -> dict[str, Plan]:
    """The stored plans of both splits; those that are missing are made from one listing of the sources."""
    set_uris = {split: storage.join(root, "images", split) for split in SPLITS}
    stored = {split: read_plan(uri) for split, uri in set_uris.items()}
    for split, plan in stored.items():
        if plan:
            digest.require_same(plan.set_uri, plan.identity, _identity(spec, split))
    if all(stored.values()):
        return {split: plan for split, plan in stored.items() if plan}
    with tempfile.TemporaryDirectory(prefix="dnd-plan-") as folder:
        units = _list(spec, root, Path(folder))
        return {split: stored[split] or _write(spec, uri, split, units[split]) for split, uri in set_uris.items()}


def _list(spec: Spec, root: str, folder: Path) -> dict[str, Path]:
    """Lists and cuts the sources once, by streaming: a file of units, one a line, for each split."""
    sources = [prepare(source, storage.join(root, "inputs")) for source in spec.render.sources]
    if names := class_names(sources):
        storage.create_if_absent(storage.join(root, "images", "classes.json"), json.dumps(names).encode())
    numbers = {split: itertools.count() for split in SPLITS}
    with ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / split, "w", encoding="utf-8")) for split in SPLITS}
        for split, unit in cut(spec.render, sources):
            files[split].write(json.dumps(unit | {"unit": next(numbers[split])}) + "\n")
    return {split: folder / split for split in SPLITS}


def _write(spec: Spec, set_uri: str, split: str, units: Path) -> Plan:
    identity = _identity(spec, split)
    with units.open(encoding="utf-8") as lines:
        return write_plan(set_uri, digest.digest_of(identity), identity, map(json.loads, lines))


def _identity(spec: Spec, split: str) -> digest.Identity:
    """What the images of a split depend on."""
    return {
        "stage": "render",
        "split": split,
        "image_size": spec.shape.image_size,
        "render": spec.render.model_dump(mode="json"),
        "seed": spec.seed,
        "versions": versions(),
    }


def _setup(spec: Spec, plan: Plan) -> Stage:
    """Runs once in each worker: starts the children that render, and returns the stage."""
    return render_stage(Renderer(spec), plan.set_uri, plan.digest)


def render_stage(renderer: Renderer, set_uri: str, plan_digest: str) -> Callable[[Unit], Receipt]:
    """The stage `unit -> receipt`."""

    def stage(unit: Unit) -> Receipt:
        return commit(set_uri, plan_digest, unit["unit"], renderer.render(unit), renderer.facts)

    return stage
