"""Verification: every byte of a shard set against its receipts, indexes and manifest (`dnd verify ROOT`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from data_specs import storage
from data_specs.manifest import summarise
from data_specs.receipts import Receipt
from data_specs.shards import Shard, index_uri
from data_specs.units import Plan, read_plan


def find_shard_sets(root: str) -> list[str]:
    """Folders under a root that hold a shard set (they have a plan)."""
    names = (f.uri for f in storage.list_files(root))
    return [uri.removesuffix("/plan.jsonl") for uri in names if uri.endswith("/plan.jsonl")]


def verify_set(set_uri: str) -> Iterator[str]:
    """Re-reads a shard set and yields one line for each thing that is wrong; nothing where all is well."""
    plan = read_plan(set_uri)
    if plan is None:
        yield f"{set_uri}: no plan.jsonl"
        return
    receipts: dict[int, Receipt] = {}
    for fault, receipt in _receipts(plan):
        if fault:
            yield fault
        if receipt:
            receipts[receipt["unit"]] = receipt
            yield from _verify_shard(set_uri, receipt)
    yield from _missing(plan, receipts)
    for name in litter(set_uri, receipts.values()):
        yield f"{set_uri}/{name}: belongs to no receipt (litter; `dnd verify --clean` removes it)"
    yield from _verify_manifest(plan)


def litter(set_uri: str, receipts: Any) -> list[str]:
    """Names of tars and indexes that no receipt names."""
    named = {r["tar"]["name"] for r in receipts if r["tar"]}
    named |= {index_uri(name) for name in named}
    files = (f.uri.rpartition("/")[2] for f in storage.list_files(set_uri))
    return [name for name in files if name.endswith((".tar", ".index.npy")) and name not in named]


def clean_litter(set_uri: str) -> list[str]:
    """Removes tars and indexes that no receipt names, and returns their names. Not while a job writes the set."""
    plan = read_plan(set_uri)
    assert plan is not None
    names = litter(set_uri, [receipt for _, receipt in _receipts(plan) if receipt])
    for name in names:
        storage.delete(storage.join(set_uri, name))
    return names


def _receipts(plan: Plan) -> Iterator[tuple[str | None, Receipt | None]]:
    for file in storage.list_files(plan.set_uri):
        name = file.uri.rpartition("/")[2]
        if not (name.endswith(".json") and name.removesuffix(".json").isdigit()):
            continue
        try:
            receipt = json.loads(storage.read_bytes(file.uri))
            fault = _disagreement(plan, name, receipt)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            yield f"{file.uri}: not a receipt ({type(error).__name__}: {error})", None
            continue
        yield (f"{file.uri}: {fault}", receipt) if fault else (None, receipt)


def _disagreement(plan: Plan, name: str, receipt: Receipt) -> str | None:
    if receipt["digest"] != plan.digest:
        return "its digest is not the plan's"
    if receipt["unit"] != int(name.removesuffix(".json")) or receipt["unit"] >= plan.num_units:
        return f"says it is unit {receipt['unit']}"
    if receipt["offered"] != receipt["written"] + sum(receipt["filtered"].values()) + len(receipt["rejected"]):
        return "offered is not written + filtered + rejected"
    if (receipt["tar"] is None) != (receipt["written"] == 0):
        return "number of samples and tar do not fit together"
    return None


def _verify_shard(set_uri: str, receipt: Receipt) -> Iterator[str]:
    if receipt["tar"] is None:
        return
    tar_uri = storage.join(set_uri, receipt["tar"]["name"])
    for uri, sha256 in ((tar_uri, receipt["tar"]["sha256"]), (index_uri(tar_uri), receipt["index"]["sha256"])):
        found = _sha256(uri)
        if found != sha256:
            yield f"{uri}: {'is missing' if found is None else 'its bytes are not those its receipt names'}"
            return
    samples = len(Shard(tar_uri))
    if samples != receipt["written"]:
        yield f"{tar_uri}: holds {samples} samples, its receipt says {receipt['written']}"


def _sha256(uri: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with storage.open_stream(uri) as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def _missing(plan: Plan, receipts: dict[int, Receipt]) -> Iterator[str]:
    missing = [unit for unit in range(plan.num_units) if unit not in receipts]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        yield f"{plan.set_uri}: {len(missing)} of {plan.num_units} units have no receipt: {shown}"


def _verify_manifest(plan: Plan) -> Iterator[str]:
    uri = storage.join(plan.set_uri, "manifest.json")
    if not storage.exists(uri):
        yield f"{uri}: is missing; run the stage again"
        return
    try:
        stored = json.loads(storage.read_text(uri))
    except json.JSONDecodeError:
        yield f"{uri}: not JSON; run the stage again"
        return
    wanted, _ = summarise(plan, stored.get("name", ""))
    if stored != wanted:
        keys = [key for key in wanted if stored.get(key) != wanted[key]]
        yield f"{uri}: does not agree with the receipts in {', '.join(keys) or 'extra keys'}; run the stage again"
