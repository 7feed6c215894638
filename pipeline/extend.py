"""Growing a plan: documents that no unit holds yet, or that were rejected, become units behind the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from data_specs import digest
from data_specs.receipts import Receipt, valid_receipts
from data_specs.units import Plan, Unit
from pipeline.splits import key_of

MAY_CHANGE = ("sources", "limits")  # of the spec's render, when a set is extended


def require_extension(plan: Plan, wanted: digest.Identity) -> None:
    """Raises ValueError where more than sources and limits has changed since the plan was made."""
    free = {key: wanted["render"][key] for key in MAY_CHANGE}
    stored = plan.identity | {"render": plan.identity["render"] | free}
    digest.require_same(plan.set_uri, stored, wanted)


def new_units(plan: Plan, listed: Iterable[Unit], per_unit: int, retry_rejected: bool) -> Iterator[Unit]:
    """Units of the listed documents that are new to the plan, numbered on from its last.

    retry_rejected: also documents that were rejected as a whole as often as they were offered. A document is known by
    its file and id, a part of a tar by its place. Raises ValueError for a plan whose units are not all done.
    """
    receipts = list(valid_receipts(plan.set_uri, plan.digest)) if retry_rejected else None
    if receipts is not None and len(receipts) < plan.num_units:
        raise ValueError(f"{plan.set_uri}: {plan.num_units - len(receipts)} units are not done; finish the set first")
    known = _known(plan, receipts)
    number = plan.num_units
    for unit in _regrouped(_left(listed, known), per_unit):
        yield unit | {"unit": number}
        number += 1


def _known(plan: Plan, receipts: list[Receipt] | None) -> np.ndarray:
    """Sorted hashes (uint64) of the documents that are settled: 80 MB for ten million."""
    offered = np.fromiter((h for unit in plan.units() for h in _hashes(unit)), np.uint64)
    if receipts is None:
        return np.unique(offered)
    values, times = np.unique(offered, return_counts=True)
    rejected = (_rejected(unit, receipt) for unit, receipt in zip(plan.units(), receipts, strict=True))
    failed, failures = np.unique(np.fromiter((h for some in rejected for h in some), np.uint64), return_counts=True)
    times[np.searchsorted(values, failed)] -= failures
    return values[times > 0]


def _rejected(unit: Unit, receipt: Receipt) -> Iterator[int]:
    keys = {reject["key"] for reject in receipt["rejected"]}
    for document, hashed in zip(unit.get("documents", []), _hashes(unit)):
        if key_of(document[0]) in keys:
            yield hashed


def _hashes(unit: Unit) -> list[int]:
    """What a unit holds: a hash of file and id of each document; of a part of a tar, of the tar and the place."""
    files = unit["files"]
    if "tar" in unit:
        return [_hash(f"{files[0][0]}\0{unit['tar']['first']}")]
    return [_hash(f"{files[document[1]][0]}\0{document[0]}") for document in unit["documents"]]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _left(listed: Iterable[Unit], known: np.ndarray) -> Iterator[Unit]:
    """The listed units without the documents that are known."""
    for unit in listed:
        hashes = np.array(_hashes(unit), np.uint64)
        places = np.minimum(np.searchsorted(known, hashes), max(len(known) - 1, 0))
        new = known[places] != hashes if len(known) else np.ones(len(hashes), bool)
        if "tar" in unit:
            yield from [unit] if new[0] else []
        elif new.any():
            yield unit | {"documents": [d for d, is_new in zip(unit["documents"], new) if is_new]}


def _regrouped(units: Iterable[Unit], per_unit: int) -> Iterator[Unit]:
    """Units of one source one after the other, put together to units of `per_unit` documents."""
    about, waiting = "", list[tuple[list[Any], list[Any]]]()
    common: Unit = {}
    for unit in units:
        if "tar" in unit:
            yield unit
            continue
        of_unit = {key: unit[key] for key in unit.keys() - {"unit", "files", "documents"}}
        if waiting and json.dumps(of_unit, sort_keys=True) != about:
            yield _unit(common, waiting)
            waiting = []
        about, common = json.dumps(of_unit, sort_keys=True), of_unit
        for document in unit["documents"]:
            waiting.append((document, unit["files"][document[1]]))
            if len(waiting) == per_unit:
                yield _unit(common, waiting)
                waiting = []
    if waiting:
        yield _unit(common, waiting)


def _unit(common: Unit, of_unit: list[tuple[list[Any], list[Any]]]) -> Unit:
    """A unit of documents, each with its file: the files that they need, and the documents with the files' numbers."""
    files = list(dict.fromkeys(tuple(file) for _, file in of_unit))
    numbers = {file: number for number, file in enumerate(files)}
    documents = [[d[0], numbers[tuple(file)], *d[2:]] for d, file in of_unit]
    return common | {"files": [list(file) for file in files], "documents": documents}


def without(unit: Unit, ids: frozenset[str]) -> Unit:
    """A unit without some of its documents, and without the files that only those need; one of a tar as it is."""
    if "documents" not in unit or ids.isdisjoint(document[0] for document in unit["documents"]):
        return unit
    kept = [(d, unit["files"][d[1]]) for d in unit["documents"] if d[0] not in ids]
    return _unit({key: unit[key] for key in unit.keys() - {"files", "documents"}}, kept)
