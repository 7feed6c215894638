"""Plans rendering and puts it on Ray: `dnd render SPEC --root ROOT` makes ROOT/images/{train,val}."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

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
    plans = {split: _plan(spec, root, split) for split in SPLITS}
    run = lambda split: run_plan(  # noqa: E731
        plans[split], partial(_setup, spec, plans[split]), workers, "images", f"render {split}"
    )
    return {split: run(split) for split in SPLITS}


def _plan(spec: Spec, root: str, split: str) -> Plan:
    set_uri = storage.join(root, "images", split)
    identity = {
        "stage": "render",
        "split": split,
        "image_size": spec.shape.image_size,
        "render": spec.render.model_dump(mode="json"),
        "seed": spec.seed,
        "versions": versions(),
    }
    if plan := read_plan(set_uri):
        digest.require_same(set_uri, plan.identity, identity)
        return plan
    sources = [prepare(source, storage.join(root, "inputs")) for source in spec.render.sources]
    if names := class_names(sources):
        storage.create_if_absent(storage.join(root, "images", "classes.json"), json.dumps(names).encode())
    of_split = (unit for its_split, unit in cut(spec.render, sources) if its_split == split)
    units = (unit | {"unit": number} for number, unit in enumerate(of_split))
    return write_plan(set_uri, digest.digest_of(identity), identity, units)


def _setup(spec: Spec, plan: Plan) -> Stage:
    """Runs once in each worker: starts the children that render, and returns the stage."""
    return render_stage(Renderer(spec), plan.set_uri, plan.digest)


def render_stage(renderer: Renderer, set_uri: str, plan_digest: str) -> Callable[[Unit], Receipt]:
    """The stage `unit -> receipt`."""

    def stage(unit: Unit) -> Receipt:
        return commit(set_uri, plan_digest, unit["unit"], renderer.render(unit))

    return stage
