"""Sets made shard by shard from another: one unit per shard of the input, which they follow when it changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from data_specs import storage
from data_specs.digest import digest_of, require_same
from data_specs.manifest import read_manifest
from data_specs.receipts import discard
from data_specs.records import Identity, InputRead, Manifest, Outcome, ShardEntry, ShardUnit
from data_specs.shards import Shard
from data_specs.units import Plan, extend_plan, read_plan, write_plan


def folder_of(uri: str) -> str:
    """Return a shard set's folder, from its own address or that of its manifest."""
    return uri.rpartition("/")[0] if uri.endswith(".json") else uri


def content_digest(manifest: Manifest) -> str:
    """Return the digest of what a shard set holds, whatever made it and wherever it lies."""
    return hashlib.sha256("".join(entry.sha256 for entry in manifest.shardlist).encode()).hexdigest()


def plan_by_shards(set_uri: str, identity: Identity, source_uri: str, split: str) -> Plan:
    """Plan a set with a unit for each shard of another.

    Args:
        set_uri: the set to make.
        identity: what it depends on beside the shards.
        source_uri: folder of the set that is read.
        split: which split that is.

    Raises:
        ValueError: the source is missing or unfinished, or another one than before.
    """
    manifest = read_manifest(storage.join(source_uri, "manifest.json"))
    identity = identity.model_copy(update={"inputs": identity.inputs | {"shards": content_digest(manifest)}})
    if plan := read_plan(set_uri):
        inputs = plan.identity.inputs | {"shards": identity.inputs["shards"]}
        require_same(set_uri, plan.identity.model_copy(update={"inputs": inputs}), identity)
        return plan if plan.identity == identity else follow(plan, identity, manifest, split)
    units = (unit_of(number, split, entry) for number, entry in enumerate(manifest.shardlist))
    return write_plan(set_uri, digest_of(identity), identity, units)


def follow(plan: Plan, identity: Identity, manifest: Manifest, split: str) -> Plan:
    """Return the plan after its input was extended or lost samples: shards made anew are done again, new ones appended.

    Raises:
        ValueError: the input is another one: a shard of the plan is neither in its manifest nor replaced there.
    """
    now: dict[str, ShardEntry | None] = dict.fromkeys(manifest.emptied)
    now |= {name: entry for entry in manifest.shardlist for name in (entry.url, *entry.replaces)}
    restated = list[ShardUnit]()
    seen = set[str | None]()
    for unit in plan.units_of(ShardUnit):
        if unit.shard and unit.shard not in now:
            require_same(plan.set_uri, plan.identity, identity)
        reads = unit_of(unit.unit, split, now[unit.shard] if unit.shard else None)
        seen.add(reads.shard)
        if unit.shard and reads.sha256 != unit.sha256:
            restated.append(reads)
    new = [entry for entry in manifest.shardlist if entry.url not in seen]
    for unit in restated:
        discard(plan.set_uri, unit.unit)
    appended = [unit_of(number, split, entry) for number, entry in enumerate(new, plan.num_units)]
    return extend_plan(plan, identity, restated + appended)


def unit_of(number: int, split: str, entry: ShardEntry | None) -> ShardUnit:
    """Make a unit that reads a shard of the input's manifest, or nothing where that shard has lost all its samples."""
    if entry is None:
        return ShardUnit(unit=number, split=split, shard=None, sha256=None, index_sha256=None)
    digests = {name: getattr(entry, name) for name in ("sha256", "index_sha256", "table_sha256")}
    return ShardUnit(unit=number, split=split, shard=entry.url, **digests)


def by_shards(
    source_uri: str, convert: Callable[[Shard], Iterable[Outcome]]
) -> Callable[[ShardUnit], Iterator[Outcome]]:
    """Return what makes the samples of a unit: those of its shard of the set at `source_uri`, converted."""

    def work(unit: ShardUnit) -> Iterator[Outcome]:
        if unit.shard and unit.sha256:  # else it has lost all its samples
            uri = storage.join(source_uri, unit.shard)
            yield InputRead(uri=uri, sha256=unit.sha256)
            yield from convert(Shard(uri, unit))

    return work
