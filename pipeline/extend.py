"""Growing a plan: documents that no unit holds yet, or that were rejected, become units behind the others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple, cast

import numpy as np
from pydantic import JsonValue

from data_specs.digest import require_same
from data_specs.receipts import valid_receipts
from data_specs.records import Identity, Receipt, SourceUnit
from data_specs.source import key_of, rank
from data_specs.sources.names import relative
from data_specs.sources.planning import relocated
from data_specs.units import Plan

log = logging.getLogger(__name__)
MAY_CHANGE = ("sources", "limits")  # of the spec's render, when a set is extended


def require_extension(plan: Plan, wanted: Identity) -> None:
    """Refuse to extend where more than sources and limits has changed since the plan was made.

    Raises:
        ValueError: it has.
    """
    now = cast(dict[str, JsonValue], wanted.spec["render"])
    stored = plan.identity
    if isinstance(before := stored.spec.get("render"), dict):
        spec = stored.spec | {"render": before | {key: now[key] for key in MAY_CHANGE}}
        stored = stored.model_copy(update={"spec": spec})
    require_same(plan.set_uri, stored, wanted)


class _Hashes(NamedTuple):
    """Sorted hashes (uint64) of documents: by file and id, and by id alone."""

    location: np.ndarray
    id: np.ndarray


def new_units(
    plan: Plan,
    other: Plan,
    listed: Iterable[SourceUnit],
    per_unit: int,
    retry_rejected: bool,
    moved: Sequence[tuple[str, str]],
) -> Iterator[SourceUnit]:
    """Yield units of the listed documents that are new to the set, numbered on from the plan's last.

    A document is known by its file and id, a part of a tar by its place. One warning tells of new ones whose ids are
    known: where a source has moved, they all are.

    Args:
        plan: the plan of a split, whose units are all done.
        other: that of the other split: what it has is no news.
        listed: all documents of the sources that fall to the split.
        per_unit: documents of a unit.
        retry_rejected: also yield documents that were rejected as a whole as often as they were offered.
        moved: (old place, new place) of folders that hold the same files at another place now.
    """
    known = _known(plan, other, retry_rejected, moved)
    number = plan.num_units
    for unit in _regrouped(_left(listed, known, plan.set_uri), per_unit):
        yield unit.model_copy(update={"unit": number})
        number += 1


def _known(plan: Plan, other: Plan, retry_rejected: bool, moved: Sequence[tuple[str, str]]) -> _Hashes:
    """Return the documents that are settled: 160 MB for ten million."""
    offered = _rows(plan, moved)
    if retry_rejected:
        values, times = np.unique(offered[:, 0], return_counts=True)
        receipts = valid_receipts(plan.set_uri, plan.digest)
        rejected = (_rejected(unit, receipt) for unit, receipt in zip(_units(plan, moved), receipts, strict=True))
        failed, failures = np.unique(np.fromiter((h for some in rejected for h in some), np.uint64), return_counts=True)
        times[np.searchsorted(values, failed)] -= failures
        offered = offered[np.isin(offered[:, 0], values[times > 0])]
    location, document_id = np.concatenate([offered, _rows(other, moved)]).T
    return _Hashes(np.unique(location), np.unique(document_id))


def _rows(plan: Plan, moved: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return a plan's hashes, uint64 [documents, 2]."""
    hashes = (value for unit in _units(plan, moved) for pair in _hashes(unit) for value in pair)
    return np.fromiter(hashes, np.uint64).reshape(-1, 2)


def _units(plan: Plan, moved: Sequence[tuple[str, str]]) -> Iterator[SourceUnit]:
    return (relocated(unit, moved, is_read=False) for unit in plan.units_of(SourceUnit))


def _rejected(unit: SourceUnit, receipt: Receipt) -> Iterator[int]:
    keys = {reject.key for reject in receipt.rejected}
    for document, (location, _) in zip(unit.documents, _hashes(unit)):
        if key_of(document.id) in keys:
            yield location


def _hashes(unit: SourceUnit) -> list[tuple[int, int]]:
    """For each document of a unit what `_Hashes` has; for a part of a tar once."""
    if unit.tar:
        named = [(unit.files[0].uri, f"{relative(unit.source.address, unit.files[0].uri)}:{unit.tar.first}")]
    else:
        named = [(document.span.file.uri, document.id) for document in unit.listed()]
    return [(rank(f"{uri}\0{name}"), rank(name)) for uri, name in named]


def _left(listed: Iterable[SourceUnit], known: _Hashes, set_uri: str) -> Iterator[SourceUnit]:
    """Yield the listed units without the documents that are known."""
    again = list[str]()
    for unit in listed:
        locations, ids = np.array(_hashes(unit), np.uint64).reshape(-1, 2).T
        new = ~_among(locations, known.location)
        names = [unit.files[0].uri] if unit.tar else [document.id for document in unit.documents]
        again += [name for name, is_again in zip(names, new & _among(ids, known.id)) if is_again]
        if unit.tar:
            yield from [unit] if new[0] else []
        elif new.any():
            documents = [document for document, is_new in zip(unit.listed(), new) if is_new]
            yield SourceUnit.of(unit.source, documents, unit.affinity)
    if again:
        log.warning(
            "%s: %d new documents have ids that it knows from another file (for instance %r): if a source has moved, "
            "they are in the set twice; remove the set and render anew",
            *(set_uri, len(again), again[0]),
        )


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each value is among sorted ones."""
    positions = np.minimum(np.searchsorted(known, values), max(len(known) - 1, 0))
    return known[positions] == values if len(known) else np.zeros(len(values), bool)


def _regrouped(units: Iterable[SourceUnit], per_unit: int) -> Iterator[SourceUnit]:
    """Units of one source one after the other, put together to units of `per_unit` documents."""
    for (source, affinity, is_of_tar), group in groupby(
        units, lambda unit: (unit.source, unit.affinity, bool(unit.tar))
    ):
        if is_of_tar:
            yield from group
            continue
        documents = (document for unit in group for document in unit.listed())
        while some := list(islice(documents, per_unit)):
            yield SourceUnit.of(source, some, affinity)
