"""A small text set, rendered in this process: what is under test is plans, shards and receipts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_specs.manifest import merge
from data_specs.receipts import valid_receipts
from data_specs.records import Manifest
from data_specs.spec import Spec, load_spec
from data_specs.units import Plan
from pipeline import isolate, job
from pipeline.render import Renderer, render_document
from pipeline.stages import Work, committing
from pipeline.workers import Workers

TINY = Path(__file__).parent.parent / "tiny.yaml"
WORDS = ["an", "be", "cat", "do", "elf", "fun", "go", "hat", "it", "jar"]


def write_texts(path: Path, ids: list[str]) -> None:
    """A JSON Lines file of short passages; one whose id begins with `broken` has no text, and is rejected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    passages = [{"id": i, "text": f"{WORDS[n % 10]} {WORDS[len(i) % 10]}"} for n, i in enumerate(ids)]
    lines = [{"id": p["id"]} if p["id"].startswith("broken") else p for p in passages]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def text_spec(folder: Path, *overrides: str) -> Spec:
    """The tiny spec over a folder of texts, four documents a unit."""
    source = json.dumps([{"kind": "text", "uri": str(folder), "licence": "CC-BY-4.0"}])
    given = [f"render.sources={source}", "render.documents_per_unit=4", "render.val_share=0.3", *overrides]
    return load_spec(TINY, given)


class NoChild:
    """What a `Child` of the renderer answers, from this process."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def map(self, calls: Iterable[tuple[Any, ...]]) -> Iterator[isolate.Answer]:
        """The answers in order."""
        for call in calls:
            yield call if isinstance(call, isolate.Answer) else isolate._answer(render_document, self.spec, *call)


def render_here(spec: Spec, root: Path, extend: bool = False, retry_rejected: bool = False) -> dict[str, Manifest]:
    """What `dnd render` makes, unit after unit in this process."""
    (root / "spec.yaml").parent.mkdir(parents=True, exist_ok=True)
    (root / "spec.yaml").write_text(spec.to_yaml())
    grown = extend or retry_rejected
    renderer, made = Renderer(spec), {}
    renderer.child = NoChild(spec)  # type: ignore[assignment]
    for output in job.RENDER.outputs(spec, str(root), Workers(), extend=grown, retry_rejected=retry_rejected):
        plan, split = output.plan, output.plan.set_uri.rpartition("/")[2]
        moved = job.moved_since(plan, spec, str(root))
        made[split] = make_here(plan, partial(job.rendering, renderer, plan.set_uri, moved), "images")
    return made


def make_here(plan: Plan, setup: Callable[[], Work], holds: str) -> Manifest:
    """Makes the units of a plan that have no receipt, one after the other in this process, and merges."""
    stage = committing(setup, plan.set_uri, plan.digest)
    done = {receipt.unit for receipt in valid_receipts(plan.set_uri, plan.digest)}
    for unit in plan.units():
        if unit.unit not in done:
            stage(unit)
    return merge(plan, holds)


def contents(root: Path, folder: str = "images") -> dict[str, bytes]:
    """Bytes of every file of a root's folder but what a growing set must rewrite."""
    files = (path for path in (root / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != "manifest.json"}
