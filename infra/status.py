"""What `dnd status` says of a root, from plans, receipts and failures: it works from any machine while jobs run."""

from __future__ import annotations

import json
from collections.abc import Iterator

from data_specs import storage
from data_specs.manifest import summarise
from data_specs.receipts import valid_receipts
from data_specs.units import Plan, read_plan
from data_specs.verify import find_shard_sets


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
    manifest, missing = summarise(plan, "")
    total, done = manifest["totals"], plan.num_units - missing
    failed = sum(1 for f in storage.list_files(plan.set_uri) if f.uri.endswith(".failed.json"))
    yield (
        f"{plan.set_uri.removeprefix(root + '/')}: {done}/{plan.num_units} units done, {failed} failed; "
        f"{total['written']} written, {total['filtered']} filtered, {total['rejected']} rejected{_rate(plan, missing)}"
    )
    for kind in ("filtered", "rejects"):
        for reason, count in sorted(manifest[kind].items(), key=lambda pair: -pair[1]):
            yield f"    {kind}: {count} {reason}"


def _rate(plan: Plan, missing: int) -> str:
    """Units a minute since the first receipt, and the time left at that rate."""
    ended = sorted(receipt["ran"]["ended"] for receipt in valid_receipts(plan.set_uri, plan.digest))
    if not missing or len(ended) < 2 or ended[-1] == ended[0]:
        return ""
    rate = (len(ended) - 1) / (ended[-1] - ended[0])
    return f"; {rate * 60:.1f} units/min, about {missing / rate / 60:.0f} min left"
