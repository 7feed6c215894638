"""What `dnd status` says of a root: two or three small reads a shard set, from any machine, also while jobs run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from data_specs import storage
from data_specs.manifest import summarise
from data_specs.units import Plan, read_plan
from data_specs.verify import find_shard_sets

SILENT_SECONDS = 90


def status_lines(root: str) -> Iterator[str]:
    """Lines for each shard set under a root, then the training stages' last logged step."""
    for set_uri in find_shard_sets(root):
        plan = read_plan(set_uri)
        if plan:
            yield from _set_lines(root, plan)
    for stage in ("tokenizer", "transformer"):
        uri = storage.join(root, stage, "metrics.jsonl")
        if storage.exists(uri):
            last = json.loads(storage.read_text(uri).splitlines()[-1])
            yield f"{stage}: step {last['step']}"


def _set_lines(root: str, plan: Plan) -> Iterator[str]:
    state, name = _state(plan), plan.set_uri.removeprefix(root.rstrip("/") + "/")
    total = {key: state["totals"].get(key, 0) for key in ("written", "filtered", "rejected")}
    yield (
        f"{name}: {state['done']}/{plan.num_units} units done, {state['failed']} failed; {total['written']} written, "
        f"{total['filtered']} filtered, {total['rejected']} rejected"
    )
    yield from _running(state)
    for kind in ("filtered", "rejects"):
        for reason, count in sorted(state[kind].items(), key=lambda pair: -pair[1]):
            yield f"    {kind}: {count} {reason}"


def _state(plan: Plan) -> dict[str, Any]:
    """A set's account: from its manifest if it is whole, from what the running job wrote, else from all receipts."""
    manifest = _json(storage.join(plan.set_uri, "manifest.json"))
    progress = _json(storage.join(plan.set_uri, "progress.json"))
    if manifest and manifest["complete"] and manifest["totals"]["units"] == plan.num_units:
        return manifest | {"done": plan.num_units, "failed": 0}
    if progress and progress["units"] == plan.num_units:
        return progress
    found, missing = summarise(plan, "")
    failed = sum(1 for f in storage.list_files(plan.set_uri) if f.uri.endswith(".failed.json"))
    return found | {"done": plan.num_units - missing, "failed": failed}


def _running(state: dict[str, Any]) -> Iterator[str]:
    """What a job says of itself: workers, rate, time left, the longest units; or how long it has been silent."""
    if "written" not in state:
        return
    silent = time.time() - state["written"]
    if state["ended"] or silent > SILENT_SECONDS:
        ended = (
            "the run has ended" if state["ended"] else f"nothing heard from {state['host']} for {silent / 60:.0f} min"
        )
        yield f"    {ended}: run the command again to finish"
        return
    left = "" if state["seconds_left"] is None else f", about {state['seconds_left'] / 60:.0f} min left"
    yield (
        f"    {state['running']} units running on {state['workers']} workers, "
        f"{state['units_per_minute']:.1f} units/min{left}"
    )
    for unit, seconds, host in state["longest"][:3]:
        yield f"    unit {unit}: for {seconds} s on {host}"


def _json(uri: str) -> Any:
    try:
        return json.loads(storage.read_text(uri))
    except FileNotFoundError:
        return None
