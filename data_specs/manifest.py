"""Manifests: a shard set's receipts merged into one file that also reads as a wids index. Equal work, equal bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_specs import storage
from data_specs.receipts import Receipt, valid_receipts
from data_specs.units import Plan

Manifest = dict[str, Any]


def merge(plan: Plan, kind: str, partial: bool = False) -> Manifest:
    """Merges the receipts of a plan into SET/manifest.json and returns it.

    kind: "images" or "codes". Raises ValueError naming the units without a receipt, unless `partial`.
    """
    manifest, missing = summarise(plan, kind)
    if missing and not partial:
        raise ValueError(f"{plan.set_uri}: {missing} of {plan.num_units} units have no receipt; run the stage again")
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    storage.write_text(storage.join(plan.set_uri, "manifest.json"), text)
    return manifest


def summarise(plan: Plan, kind: str) -> tuple[Manifest, int]:
    """(manifest of what has a receipt now, number of units without one)."""
    totals: Counter[str] = Counter()
    filtered: Counter[str] = Counter()
    rejects: Counter[str] = Counter()
    shardlist = []
    for receipt in valid_receipts(plan.set_uri, plan.digest):
        _count(receipt, totals, filtered, rejects)
        if receipt["tar"]:
            shardlist.append(_entry(receipt))
    missing = plan.num_units - totals["units"]
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "format_version": 1,
        "name": kind,
        "digest": plan.digest,
        "complete": missing == 0,
        "totals": {key: totals[key] for key in ("units", "offered", "written", "filtered", "rejected", "bytes")},
        "filtered": dict(sorted(filtered.items())),
        "rejects": dict(sorted(rejects.items())),
        "shardlist": shardlist,
    }, missing


def _count(receipt: Receipt, totals: Counter[str], filtered: Counter[str], rejects: Counter[str]) -> None:
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
    }


def read_manifest(manifest_uri: str) -> Manifest:
    """Reads a whole manifest. Raises ValueError where it is absent, not a manifest, or partial, with what to do."""
    try:
        manifest = json.loads(storage.read_text(manifest_uri))
    except FileNotFoundError:
        raise ValueError(f"{manifest_uri}: no such manifest; run the stage that makes it first") from None
    except ValueError as error:
        raise ValueError(f"{manifest_uri}: not JSON ({error}); run the stage that makes it again") from None
    if not isinstance(manifest, dict) or manifest.get("__kind__") != "wids-shard-index-v1":
        raise ValueError(f"{manifest_uri}: not the manifest of a shard set")
    if not manifest.get("complete", True):
        raise ValueError(f"{manifest_uri}: the shard set is not finished; run the stage that makes it again")
    return manifest


def total_rejects(manifests: Iterable[Manifest]) -> dict[str, int]:
    """Rejects by reason over several manifests."""
    total: Counter[str] = Counter()
    for manifest in manifests:
        total.update(manifest["rejects"])
    return dict(total.most_common())
