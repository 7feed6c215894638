"""Growing a plan: documents that no unit holds yet, or that were rejected, become units behind the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import numpy as np
from pydantic import JsonValue

from data_specs.digest import require_same
from data_specs.receipts import valid_receipts
from data_specs.records import Document, Identity, Receipt, SourceUnit
from data_specs.splits import key_of
from data_specs.units import Plan

MAY_CHANGE = ("sources", "limits")  # of the spec's render, when a set is extended


def require_extension(plan: Plan, wanted: Identity) -> None:
    """Raises ValueError where more than sources and limits has changed since the plan was made."""
    now, before = cast(dict[str, JsonValue], wanted.spec["render"]), plan.identity.spec.get("render")
    if isinstance(before, dict):
        spec = plan.identity.spec | {"render": before | {key: now[key] for key in MAY_CHANGE}}
        require_same(plan.set_uri, plan.identity.model_copy(update={"spec": spec}), wanted)
    else:
        require_same(plan.set_uri, plan.identity, wanted)


def new_units(plan: Plan, listed: Iterable[SourceUnit], per_unit: int, retry_rejected: bool) -> Iterator[SourceUnit]:
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
        yield unit.model_copy(update={"unit": number})
        number += 1


def _known(plan: Plan, receipts: list[Receipt] | None) -> np.ndarray:
    """Sorted hashes (uint64) of the documents that are settled: 80 MB for ten million."""
    offered = np.fromiter((h for unit in _units(plan) for h in _hashes(unit)), np.uint64)
    if receipts is None:
        return np.unique(offered)
    values, times = np.unique(offered, return_counts=True)
    rejected = (_rejected(unit, receipt) for unit, receipt in zip(_units(plan), receipts, strict=True))
    failed, failures = np.unique(np.fromiter((h for some in rejected for h in some), np.uint64), return_counts=True)
    times[np.searchsorted(values, failed)] -= failures
    return values[times > 0]


def _units(plan: Plan) -> Iterator[SourceUnit]:
    return (unit for unit in plan.units() if isinstance(unit, SourceUnit))


def _rejected(unit: SourceUnit, receipt: Receipt) -> Iterator[int]:
    keys = {reject.key for reject in receipt.rejected}
    for document, hashed in zip(unit.documents, _hashes(unit)):
        if key_of(document.id) in keys:
            yield hashed


def _hashes(unit: SourceUnit) -> list[int]:
    """What a unit holds: a hash of file and id of each document; of a part of a tar, of the tar and the place."""
    if unit.tar:
        return [_hash(f"{unit.files[0].uri}\0{unit.tar.first}")]
    return [_hash(f"{document.span.file.uri}\0{document.id}") for document in unit.listed()]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _left(listed: Iterable[SourceUnit], known: np.ndarray) -> Iterator[SourceUnit]:
    """The listed units without the documents that are known."""
    for unit in listed:
        hashes = np.array(_hashes(unit), np.uint64)
        places = np.minimum(np.searchsorted(known, hashes), max(len(known) - 1, 0))
        new = known[places] != hashes if len(known) else np.ones(len(hashes), bool)
        if unit.tar:
            yield from [unit] if new[0] else []
        elif new.any():
            documents = [document for document, is_new in zip(unit.listed(), new) if is_new]
            yield SourceUnit.of(unit.source, documents, unit.affinity)


def _regrouped(units: Iterable[SourceUnit], per_unit: int) -> Iterator[SourceUnit]:
    """Units of one source one after the other, put together to units of `per_unit` documents."""
    waiting, like = list[Document](), None
    for unit in units:
        if unit.tar:
            yield unit
            continue
        if like is not None and waiting and (unit.source, unit.affinity) != (like.source, like.affinity):
            yield SourceUnit.of(like.source, waiting, like.affinity)
            waiting = []
        like = unit
        for document in unit.listed():
            waiting.append(document)
            if len(waiting) == per_unit:
                yield SourceUnit.of(like.source, waiting, like.affinity)
                waiting = []
    if like is not None and waiting:
        yield SourceUnit.of(like.source, waiting, like.affinity)


def without(unit: SourceUnit, gone: Callable[[str], bool]) -> SourceUnit:
    """A unit without the documents whose ids are gone, and the files that only those need; one of a tar as it is."""
    if not any(gone(document.id) for document in unit.documents):
        return unit
    kept = [document for document in unit.listed() if not gone(document.id)]
    return SourceUnit.of(unit.source, kept, unit.affinity).model_copy(update={"unit": unit.unit})
