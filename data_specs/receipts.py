"""Receipts: the commit point of a unit. A shard counts when its receipt is there, whole and fitting; never before.

SET/NNNNNN.json says what was offered, written, filtered and rejected; SET/NNNNNN.failed.json that a unit failed.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_specs import storage
from data_specs.scratch import scratch_folder
from data_specs.shards import Shard, ShardFacts, index_uri, write_shard
from data_specs.units import Dropped, Outcome, Sample

Receipt = dict[str, Any]
_RECEIPT = re.compile(r"[0-9]{6,}\.json")


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
    with scratch_folder() as folder:
        tar, index = folder / "shard.tar", folder / "shard.index.npy"
        shard = write_shard(_samples(outcomes, dropped), tar, index)
        receipt = _receipt(digest, unit, shard, dropped) | (facts or {})
        if shard.nsamples:
            tar_uri = storage.join(set_uri, receipt["tar"]["name"])
            _place(tar, tar_uri)
            _place(index, index_uri(tar_uri))
    ended = time.time()
    receipt["ran"] = {"host": socket.gethostname(), "seconds": round(ended - started, 3), "ended": round(ended, 3)}
    receipt = _create_or_adopt(storage.join(set_uri, receipt_name(unit)), digest, receipt)
    storage.delete(storage.join(set_uri, f"{unit:06d}.failed.json"))
    return receipt


def remake(set_uri: str, receipt: Receipt, gone: Callable[[Sample], bool], reason: str) -> Receipt:
    """Makes a unit's shard anew without the samples for which `gone` is true, counted as filtered for that reason.

    The new shard is there before the receipt names it, the old one goes last, and `replaces` keeps its name: a remake
    that was killed is finished by the next. Returns the receipt that holds then. Not while a job writes the set.
    """
    if receipt["tar"] is not None:
        with scratch_folder() as folder:
            tar, index = folder / "shard.tar", folder / "shard.index.npy"
            old = Shard(storage.join(set_uri, receipt["tar"]["name"]))
            samples = (Sample(old.key(number), old.fields(number)) for number in range(len(old)))
            shard = write_shard((sample for sample in samples if not gone(sample)), tar, index)
            if shard.nsamples < receipt["written"]:
                receipt = _remade(receipt, shard, reason)
                if shard.nsamples:
                    tar_uri = storage.join(set_uri, receipt["tar"]["name"])
                    _place(tar, tar_uri)
                    _place(index, index_uri(tar_uri))
                storage.write_bytes(storage.join(set_uri, receipt_name(receipt["unit"])), _bytes(receipt))
    for name in receipt.get("replaces", []):
        storage.delete(storage.join(set_uri, name))
        storage.delete(index_uri(storage.join(set_uri, name)))
    return receipt


def _remade(receipt: Receipt, shard: ShardFacts, reason: str) -> Receipt:
    taken = receipt["written"] - shard.nsamples
    now = _receipt(receipt["digest"], receipt["unit"], shard, [])
    filtered = receipt["filtered"] | {reason: receipt["filtered"].get(reason, 0) + taken}
    return receipt | {
        "written": shard.nsamples,
        "filtered": dict(sorted(filtered.items())),
        "tar": now["tar"],
        "index": now["index"],
        "replaces": [*receipt.get("replaces", []), receipt["tar"]["name"]],
    }


def discard(set_uri: str, unit: int) -> None:
    """Takes back a unit: its shard, then its receipt, so that the next run makes it anew. Not while a job writes."""
    uri = storage.join(set_uri, receipt_name(unit))
    try:
        tar = parse_receipt(storage.read_bytes(uri))["tar"]
    except (FileNotFoundError, ValueError):
        return
    if tar:
        storage.delete(storage.join(set_uri, tar["name"]))
        storage.delete(index_uri(storage.join(set_uri, tar["name"])))
    storage.delete(uri)


def _place(path: Path, uri: str) -> None:
    """Uploads a file named by its content; one there of another size is damaged, and is replaced."""
    if not storage.create_from_file(path, uri):
        there = storage.stat(uri)
        if there is None or there.size != path.stat().st_size:
            storage.write_file(path, uri)


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
    tar = {"name": name, "bytes": shard.filesize, "md5": shard.md5sum, "sha256": shard.sha256}
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
        "tar": tar if shard.nsamples else None,
        "index": {"sha256": shard.index_sha256} if shard.nsamples else None,
    }


def _create_or_adopt(uri: str, digest: str, ours: Receipt) -> Receipt:
    """Creates the receipt, or takes the one already there if it is valid; a damaged one is replaced by ours."""
    data = _bytes(ours)
    if not storage.create_if_absent(uri, data):
        there = read_receipt(uri, digest)
        if there is not None:
            return there
        storage.write_bytes(uri, data)
    return ours


def _bytes(receipt: Receipt) -> bytes:
    return (json.dumps(receipt, sort_keys=True) + "\n").encode()


def read_receipt(uri: str, digest: str) -> Receipt | None:
    """A receipt if it is valid: whole, with this plan's digest, its tar there with its size; else None."""
    try:
        receipt = parse_receipt(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return None
    if receipt["digest"] != digest:
        return None
    if receipt["tar"] is None:
        return receipt
    tar = storage.stat(storage.join(uri.rpartition("/")[0], receipt["tar"]["name"]))
    return receipt if tar and tar.size == receipt["tar"]["bytes"] else None


def parse_receipt(data: bytes) -> Receipt:
    """A receipt from its bytes. Raises ValueError for one that is damaged: not JSON, or not of a receipt's shape."""
    receipt = json.loads(data)
    if not isinstance(receipt, dict):
        raise ValueError(f"is {type(receipt).__name__}, not an object")
    _require(receipt, digest=str, unit=int, offered=int, written=int, filtered=dict, rejected=list)
    if receipt.get("tar") is not None or receipt["written"]:
        _require(receipt, tar=dict, index=dict)
        _require(receipt["tar"], name=str, bytes=int, md5=str, sha256=str)
        _require(receipt["index"], sha256=str)
    return receipt | {"tar": receipt.get("tar")}


def _require(entries: dict[str, Any], **types: type) -> None:
    for key, wanted in types.items():
        if not isinstance(entries.get(key), wanted):
            raise ValueError(f"its {key} is {json.dumps(entries.get(key))[:40]}, not {wanted.__name__}")


def valid_receipts(set_uri: str, digest: str) -> Iterator[Receipt]:
    """All valid receipts of a shard set in order of unit, from one listing of the folder."""
    sizes: dict[str, int] = {f.uri.rpartition("/")[2]: f.size for f in storage.list_files(set_uri)}
    for _, data in read_receipt_files(set_uri, sizes):
        try:
            receipt = parse_receipt(data)
        except ValueError:
            continue
        tar = receipt["tar"]
        if receipt["digest"] == digest and (tar is None or sizes.get(tar["name"]) == tar["bytes"]):
            yield receipt


def read_receipt_files(set_uri: str, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of those of the named files that are receipts, in order of unit."""
    wanted = sorted((name for name in names if _RECEIPT.fullmatch(name)), key=lambda name: (len(name), name))
    contents = storage.read_many(storage.join(set_uri, name) for name in wanted)
    for name, data in zip(wanted, contents, strict=True):
        if data is not None:
            yield name, data


def record_failure(set_uri: str, unit: int, reason: str) -> None:
    """Writes SET/NNNNNN.failed.json: this unit failed and commits nothing; a later run tries it again."""
    failure = {"unit": unit, "reason": reason, "host": socket.gethostname(), "ended": round(time.time(), 3)}
    storage.write_text(storage.join(set_uri, f"{unit:06d}.failed.json"), json.dumps(failure, sort_keys=True) + "\n")
