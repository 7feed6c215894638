"""Receipts: the commit point of a unit. A shard counts when its receipt is there, whole and fitting; never before.

SET/NNNNNN.json says what was offered, written, filtered and rejected; SET/NNNNNN.failed.json that a unit failed.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_specs import storage
from data_specs.shards import ShardFacts, index_uri, write_shard
from data_specs.units import Dropped, Outcome, Sample

Receipt = dict[str, Any]


def receipt_name(unit: int) -> str:
    """File name of a unit's receipt."""
    return f"{unit:06d}.json"


def commit(
    set_uri: str, digest: str, unit: int, outcomes: Iterable[Outcome], facts: dict[str, Any] | None = None
) -> Receipt:
    """Writes the samples among `outcomes` as the unit's shard, uploads it, then creates the receipt.

    The loser of a race adopts the winner's receipt. `facts` are further entries (what was read, with which sha256).
    """
    started, dropped = time.time(), list[Dropped]()
    with tempfile.TemporaryDirectory(prefix=f"dnd-{unit:06d}-") as folder:
        tar, index = Path(folder, "shard.tar"), Path(folder, "shard.index.npy")
        shard = write_shard(_samples(outcomes, dropped), tar, index)
        receipt = _receipt(digest, unit, shard, dropped) | (facts or {})
        if shard.nsamples:
            tar_uri = storage.join(set_uri, receipt["tar"]["name"])
            storage.create_from_file(tar, tar_uri)
            storage.create_from_file(index, index_uri(tar_uri))
    receipt["ran"] = {
        "host": socket.gethostname(),
        "seconds": round(time.time() - started, 3),
        "ended": round(time.time(), 3),
    }
    uri = storage.join(set_uri, receipt_name(unit))
    if not storage.create_if_absent(uri, (json.dumps(receipt, sort_keys=True) + "\n").encode()):
        return _adopt_or_replace(uri, digest, receipt)
    storage.delete(storage.join(set_uri, f"{unit:06d}.failed.json"))
    return receipt


def _samples(outcomes: Iterable[Outcome], dropped: list[Dropped]) -> Iterator[Sample]:
    for outcome in outcomes:
        if isinstance(outcome, Sample):
            yield outcome
        else:
            dropped.append(outcome)


def _receipt(digest: str, unit: int, shard: ShardFacts, dropped: list[Dropped]) -> Receipt:
    filtered = [d for d in dropped if d.kind == "filtered"]
    rejected = [d for d in dropped if d.kind == "rejected"]
    name = f"{unit:06d}-{shard.sha256[:8]}.tar"
    return {
        "format_version": 1,
        "digest": digest,
        "unit": unit,
        "offered": shard.nsamples + len(dropped),
        "written": shard.nsamples,
        "filtered": dict(sorted(Counter(d.reason for d in filtered).items())),
        "rejected": [
            {"key": d.key, "source": d.source, "reason": d.reason, "environmental": d.environmental} for d in rejected
        ],
        "tar": {"name": name, "bytes": shard.filesize, "md5": shard.md5sum, "sha256": shard.sha256}
        if shard.nsamples
        else None,
        "index": {"sha256": shard.index_sha256} if shard.nsamples else None,
    }


def _adopt_or_replace(uri: str, digest: str, ours: Receipt) -> Receipt:
    """The receipt already there, if it is valid; a damaged one is replaced by ours."""
    there = read_receipt(uri, digest)
    if there is not None:
        return there
    storage.write_bytes(uri, (json.dumps(ours, sort_keys=True) + "\n").encode())
    return ours


def read_receipt(uri: str, digest: str) -> Receipt | None:
    """A receipt if it is valid: it parses, carries this plan's digest, and its tar is there with its size; else None."""
    try:
        receipt = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(receipt, dict) or receipt.get("digest") != digest:
        return None
    if receipt["tar"] is None:
        return receipt
    tar = storage.stat(storage.join(uri.rpartition("/")[0], receipt["tar"]["name"]))
    return receipt if tar and tar.size == receipt["tar"]["bytes"] else None


def valid_receipts(set_uri: str, digest: str) -> Iterator[Receipt]:
    """All valid receipts of a shard set in order of unit, from one listing of the folder."""
    sizes: dict[str, int] = {f.uri.rpartition("/")[2]: f.size for f in storage.list_files(set_uri)}
    for name in sorted(n for n in sizes if n.endswith(".json") and n.removesuffix(".json").isdigit()):
        try:
            receipt = json.loads(storage.read_bytes(storage.join(set_uri, name)))
        except json.JSONDecodeError:
            continue
        tar = receipt.get("tar") if isinstance(receipt, dict) else None
        fits = tar is None or sizes.get(tar["name"]) == tar["bytes"]
        if isinstance(receipt, dict) and receipt.get("digest") == digest and fits:
            yield receipt


def record_failure(set_uri: str, unit: int, reason: str) -> None:
    """Writes SET/NNNNNN.failed.json: this unit failed and commits nothing; a later run tries it again."""
    failure = {"unit": unit, "reason": reason, "host": socket.gethostname(), "ended": round(time.time(), 3)}
    storage.write_text(storage.join(set_uri, f"{unit:06d}.failed.json"), json.dumps(failure, sort_keys=True) + "\n")
