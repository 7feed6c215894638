"""Manifests: a shard set's receipts merged into one file that also reads as a wids index. Equal work, equal bytes.

Of a set of more than PART_SHARDS shards, manifest.json names parts, manifest-NNNN-<sha256[:8]>.json, each of them a
wids index; `read_manifest` gives the whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from data_specs import storage
from data_specs.digest import digest_of
from data_specs.receipts import valid_receipts
from data_specs.records import Manifest, ManifestPart, PartEntry, Reason, Receipt, RecordError, ShardEntry, Totals
from data_specs.units import Plan

PART_SHARDS = 10_000


class Account:
    """The totals of a set, added up receipt by receipt."""

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self.units = set[int]()
        self.counts = Counter[str]()
        self.filtered = Counter[Reason]()
        self.rejects = Counter[Reason]()
        self.shards = dict[int, ShardEntry]()
        self.emptied = dict[int, tuple[str, ...]]()
        for receipt in receipts:
            self.add(receipt)

    def add(self, receipt: Receipt) -> None:
        """Add a unit's receipt; a second one of the same unit is ignored."""
        if receipt.unit in self.units:
            return
        self.units.add(receipt.unit)
        self.counts["offered"] += receipt.offered
        self.counts["written"] += receipt.written
        self.counts["bytes"] += receipt.shard.bytes if receipt.shard else 0
        self.filtered.update(receipt.filtered)
        self.rejects.update(reject.reason for reject in receipt.rejected)
        if receipt.shard:
            self.shards[receipt.unit] = _entry(receipt)
        elif receipt.replaces:
            self.emptied[receipt.unit] = receipt.replaces

    @property
    def totals(self) -> Totals:
        """The sums over all units."""
        taken = {"filtered": self.filtered.total(), "rejected": self.rejects.total()}
        return Totals(units=len(self.units), **self.counts, **taken)

    def manifest(self, plan: Plan, name: str) -> Manifest:
        """Return the manifest of the units that were added."""
        shards = tuple(entry for _, entry in sorted(self.shards.items()))
        emptied = tuple(name for _, names in sorted(self.emptied.items()) for name in names)
        return Manifest(
            name=name,
            digest=_digest(plan, shards, emptied),
            complete=len(self.units) == plan.num_units,
            totals=self.totals,
            filtered=dict(sorted(self.filtered.items())),
            rejects=dict(sorted(self.rejects.items())),
            shardlist=shards,
            emptied=emptied,
        )


def _entry(receipt: Receipt) -> ShardEntry:
    shard = receipt.shard
    assert shard is not None
    return ShardEntry(
        url=shard.name,
        nsamples=receipt.written,
        filesize=shard.bytes,
        md5sum=shard.md5,
        sha256=shard.sha256,
        index_sha256=shard.index_sha256,
        table_sha256=shard.table_sha256,
        replaces=receipt.replaces,
    )


def _digest(plan: Plan, shards: tuple[ShardEntry, ...], emptied: tuple[str, ...]) -> str:
    """Return the plan's digest while the set is as first planned; another once it has grown or lost samples."""
    replaced = [name for entry in shards for name in entry.replaces] + list(emptied)
    if plan.num_parts == 1 and not replaced:
        return plan.digest
    last = plan.identity.model_dump(mode="json")
    return digest_of({"plan": plan.digest, "last": last, "units": plan.num_units, "replaced": replaced})


def summarise(plan: Plan, name: str) -> Manifest:
    """Return the manifest of what has a receipt now."""
    return Account(valid_receipts(plan.set_uri, plan.digest)).manifest(plan, name)


def merge(plan: Plan, name: str, partial: bool = False) -> Manifest:
    """Merge the receipts of a plan into SET/manifest.json.

    Args:
        plan: the set's plan.
        name: "images" or "codes", as the manifest says.
        partial: whether units may be missing; the manifest then says so, and the next stage refuses it.

    Raises:
        ValueError: units have no receipt; the message says how many.
    """
    manifest = summarise(plan, name)
    if not (manifest.complete or partial):
        missing = plan.num_units - manifest.totals.units
        raise ValueError(f"{plan.set_uri}: {missing} of {plan.num_units} units have no receipt; run the stage again")
    store(plan.set_uri, manifest)
    return manifest


def store(set_uri: str, manifest: Manifest) -> None:
    """Write the parts of a large manifest, then manifest.json; then delete parts that it no longer names.

    A file that is there already with the same bytes is left as it is.
    """
    uri = storage.join(set_uri, "manifest.json")
    parts = tuple[PartEntry, ...]()
    if len(manifest.shardlist) > PART_SHARDS:
        firsts = range(0, len(manifest.shardlist), PART_SHARDS)
        parts = tuple(_store_part(set_uri, manifest, first) for first in firsts)
    data = manifest.model_copy(update={"parts": parts} | ({"shardlist": ()} if parts else {})).to_json()
    if storage.exists(uri) and storage.read_bytes(uri) == data:
        return
    old = set[str]()
    with suppress(RecordError):  # a damaged one is replaced
        old = parts_named(set_uri)
    storage.write(uri, data)
    for name in old - {part.url for part in parts}:
        storage.delete(storage.join(set_uri, name))


def parts_named(set_uri: str) -> set[str]:
    """Return the file names of the parts that a set's manifest names.

    Raises:
        RecordError: that is damaged.
    """
    uri = storage.join(set_uri, "manifest.json")
    try:
        return {part.url for part in Manifest.parse(storage.read_bytes(uri), uri).parts}
    except FileNotFoundError:
        return set()


def _store_part(set_uri: str, manifest: Manifest, first: int) -> PartEntry:
    shards = manifest.shardlist[first : first + PART_SHARDS]
    data = ManifestPart(name=manifest.name, shardlist=shards).to_json()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"manifest-{first // PART_SHARDS:04d}-{sha256[:8]}.json"
    storage.create(storage.join(set_uri, name), data)
    return PartEntry(url=name, nshards=len(shards), nsamples=sum(entry.nsamples for entry in shards), sha256=sha256)


def read_manifest(manifest_uri: str) -> Manifest:
    """Read a whole manifest, its parts put together.

    Raises:
        ValueError: it is absent, not a manifest, or partial; the message says what to do.
    """
    try:
        manifest = load_manifest(manifest_uri)
    except FileNotFoundError:
        raise ValueError(f"{manifest_uri}: no such manifest; run the stage that makes it first") from None
    if not manifest.complete:
        raise ValueError(f"{manifest_uri}: the shard set is not finished; run the stage that makes it again")
    return manifest


def load_manifest(manifest_uri: str) -> Manifest:
    """Return a manifest, also a partial one, its parts put together.

    Raises:
        FileNotFoundError: there is none, or a part is missing.
        ValueError: it is not a manifest, or a part of it is damaged.
    """
    manifest = Manifest.parse(storage.read_bytes(manifest_uri), manifest_uri)
    if not manifest.parts:
        return manifest
    shards = list[ShardEntry]()
    for part in manifest.parts:
        uri = storage.join(manifest_uri.rpartition("/")[0], part.url)
        data = storage.read_bytes(uri)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise ValueError(f"{uri}: damaged; run the stage that makes it again")
        shards += ManifestPart.parse(data, uri).shardlist
    try:
        return Manifest.model_validate(dict(manifest) | {"shardlist": tuple(shards), "parts": ()})
    except ValueError as error:
        raise ValueError(f"{manifest_uri}: its parts are not what it says of them") from error
