"""Manifests: a shard set's receipts merged into one file that also reads as a wids index. Equal work, equal bytes.

Of a set of more than PART_SHARDS shards, manifest.json names parts, manifest-NNNN-<sha256[:8]>.json, each of them a
wids index; `read_manifest` gives the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_specs import storage
from data_specs.digest import digest_of
from data_specs.receipts import Receipt, valid_receipts
from data_specs.units import Plan

Manifest = dict[str, Any]
PART_SHARDS = 10_000


def merge(plan: Plan, kind: str, partial: bool = False) -> Manifest:
    """Merges the receipts of a plan into SET/manifest.json and returns it.

    kind: "images" or "codes". Raises ValueError naming the units without a receipt, unless `partial`.
    """
    manifest, missing = summarise(plan, kind)
    if missing and not partial:
        raise ValueError(f"{plan.set_uri}: {missing} of {plan.num_units} units have no receipt; run the stage again")
    _store(plan.set_uri, manifest)
    return manifest


def _store(set_uri: str, manifest: Manifest) -> None:
    """Writes the parts, if it is large, then manifest.json; then takes away parts that it names no more."""
    uri, old = storage.join(set_uri, "manifest.json"), parts_named(set_uri)
    shards, parts = manifest["shardlist"], list[dict[str, Any]]()
    if len(shards) > PART_SHARDS:
        parts = [_store_part(set_uri, manifest, first) for first in range(0, len(shards), PART_SHARDS)]
        manifest = {key: value for key, value in manifest.items() if key != "shardlist"} | {"parts": parts}
    storage.write_bytes(uri, _text(manifest))
    for name in old - {part["url"] for part in parts}:
        storage.delete(storage.join(set_uri, name))


def parts_named(set_uri: str) -> set[str]:
    """File names of the parts that a set's manifest names."""
    try:
        return {part["url"] for part in json.loads(storage.read_text(storage.join(set_uri, "manifest.json")))["parts"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()


def _store_part(set_uri: str, manifest: Manifest, first: int) -> dict[str, Any]:
    shards = manifest["shardlist"][first : first + PART_SHARDS]
    data = _text({key: manifest[key] for key in ("__kind__", "wids_version", "name")} | {"shardlist": shards})
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"manifest-{first // PART_SHARDS:04d}-{sha256[:8]}.json"
    storage.create_if_absent(storage.join(set_uri, name), data)
    nsamples = sum(entry["nsamples"] for entry in shards)
    return {"url": name, "nshards": len(shards), "nsamples": nsamples, "sha256": sha256}


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def summarise(plan: Plan, kind: str) -> tuple[Manifest, int]:
    """(manifest of what has a receipt now, number of units without one)."""
    totals: Counter[str] = Counter()
    filtered: Counter[str] = Counter()
    rejects: Counter[str] = Counter()
    shardlist, emptied = list[dict[str, Any]](), list[str]()
    for receipt in valid_receipts(plan.set_uri, plan.digest):
        count(receipt, totals, filtered, rejects)
        if receipt["tar"]:
            shardlist.append(_entry(receipt))
        else:
            emptied += receipt.get("replaces", [])
    missing = plan.num_units - totals["units"]
    manifest = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "format_version": 1,
        "name": kind,
        "digest": _digest(plan, shardlist, emptied),
        "complete": missing == 0,
        "totals": {key: totals[key] for key in ("units", "offered", "written", "filtered", "rejected", "bytes")},
        "filtered": dict(sorted(filtered.items())),
        "rejects": dict(sorted(rejects.items())),
        "shardlist": shardlist,
    }
    return manifest | ({"emptied": emptied} if emptied else {}), missing


def _digest(plan: Plan, shardlist: list[dict[str, Any]], emptied: list[str]) -> str:
    """The plan's digest as long as the set is what was first planned; another once it has grown or lost samples."""
    replaced = [name for entry in shardlist for name in entry.get("replaces", [])] + emptied
    if plan.num_parts == 1 and not replaced:
        return plan.digest
    return digest_of({"plan": plan.digest, "last": plan.identity, "units": plan.num_units, "replaced": replaced})


def count(receipt: Receipt, totals: Counter[str], filtered: Counter[str], rejects: Counter[str]) -> None:
    """Adds a receipt to the accounts of a set: totals, filtered and rejected by reason."""
    totals["units"] += 1
    totals["offered"] += receipt["offered"]
    totals["written"] += receipt["written"]
    totals["filtered"] += sum(receipt["filtered"].values())
    totals["rejected"] += len(receipt["rejected"])
    totals["bytes"] += receipt["tar"]["bytes"] if receipt["tar"] else 0
    filtered.update(receipt["filtered"])
    rejects.update(reject["reason"] for reject in receipt["rejected"])


def _entry(receipt: Receipt) -> dict[str, Any]:
    tar = receipt["tar"]
    return {
        "url": tar["name"],
        "nsamples": receipt["written"],
        "filesize": tar["bytes"],
        "md5sum": tar["md5"],
        "sha256": tar["sha256"],
        **({"replaces": receipt["replaces"]} if "replaces" in receipt else {}),
    }


def read_manifest(manifest_uri: str) -> Manifest:
    """Reads a whole manifest. Raises ValueError where it is absent, not a manifest, or partial, with what to do."""
    try:
        manifest = load_manifest(manifest_uri)
    except FileNotFoundError:
        raise ValueError(f"{manifest_uri}: no such manifest; run the stage that makes it first") from None
    except ValueError as error:
        raise ValueError(f"{manifest_uri}: not JSON ({error}); run the stage that makes it again") from None
    if not isinstance(manifest, dict) or manifest.get("__kind__") != "wids-shard-index-v1":
        raise ValueError(f"{manifest_uri}: not the manifest of a shard set")
    if not manifest.get("complete", True):
        raise ValueError(f"{manifest_uri}: the shard set is not finished; run the stage that makes it again")
    return manifest


def load_manifest(manifest_uri: str) -> Any:
    """What a manifest holds, its parts put together, unchecked. Raises FileNotFoundError, ValueError for no JSON."""
    manifest = json.loads(storage.read_text(manifest_uri))
    if not isinstance(manifest, dict) or "parts" not in manifest:
        return manifest
    folder, shardlist = manifest_uri.rpartition("/")[0], list[dict[str, Any]]()
    for part in manifest.pop("parts"):
        data = storage.read_bytes(storage.join(folder, part["url"]))
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise ValueError(f"its part {part['url']} is damaged")
        shardlist += json.loads(data)["shardlist"]
    return manifest | {"shardlist": shardlist}


def total_rejects(manifests: Iterable[Manifest]) -> dict[str, int]:
    """Rejects by reason over several manifests."""
    total: Counter[str] = Counter()
    for manifest in manifests:
        total.update(manifest["rejects"])
    return dict(total.most_common())
