"""All sources of a spec together: the numbers of their classes, and their documents cut into units by split.

Validation is never empty unawares: where no document falls to it, the one of the lowest rank is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from data_specs.records import SourceUnit, parse_unit, unit_line
from data_specs.source import Source
from data_specs.splits import rank

if TYPE_CHECKING:
    from data_specs.parts import Render

SPLITS = ("train", "val")
log = logging.getLogger(__name__)


def class_numbers(sources: Sequence[Source]) -> dict[str, int]:
    """Return the number of each class that is known by name, in the sorted order of all sources' names."""
    names = {name for source in sources for name in source.class_names()}
    return {name: number for number, name in enumerate(sorted(names))}


def class_names(sources: Sequence[Source]) -> dict[int, str]:
    """Return class number -> name: as above, and of classes that sources bring along by number."""
    stored = {number: name for source in sources for number, name in source.numbered_classes().items()}
    return stored | {number: name for name, number in class_numbers(sources).items()}


def cut(render: Render, sources: Sequence[Source]) -> Iterator[tuple[str, SourceUnit]]:
    """Cut the documents of prepared sources into (split, unit numbered within it)."""
    numbers = {"train": count(), "val": count()}
    classes = class_numbers(sources)
    for source in sources:
        for split, unit in source.units(render.documents_per_unit, render.val_share, classes):
            yield split, unit.model_copy(update={"unit": next(numbers[split])})


def list_units(render: Render, sources: Sequence[Source], folder: Path) -> dict[str, Path]:
    """Cut prepared sources once, by streaming, into a file of units, one a line, for each split.

    Raises:
        ValueError: a source is empty or cannot be read, or there is one document alone and validation wants one too.
    """
    files = {split: folder / split for split in SPLITS}
    with ExitStack() as stack:
        streams = {split: stack.enter_context(path.open("wb")) for split, path in files.items()}
        for split, unit in cut(render, sources):
            streams[split].write(unit_line(unit))
    if render.val_share and not files["val"].stat().st_size:
        _take_one_for_validation(files, render.val_share)
    return files


def read_units(path: Path) -> Iterator[SourceUnit]:
    """Read the units of a file that `list_units` made."""
    with path.open("rb") as lines:
        for line in lines:
            unit = parse_unit(line, "a listed unit")
            assert isinstance(unit, SourceUnit)
            yield unit


def _take_one_for_validation(files: dict[str, Path], val_share: float) -> None:
    """Moves the document of the lowest rank, of those that a hash splits, from train to val."""
    ranks = [rank for unit in read_units(files["train"]) for rank in _ranks(unit)]
    if not ranks:
        log.warning("no document is in val: every source says which split it is for, and none is for val")
        return
    number = sum(unit.tar.count if unit.tar else len(unit.documents) for unit in read_units(files["train"]))
    if number == 1:
        raise ValueError(
            "there is one document, and validation needs one of its own: add some, or set render.val_share=0"
        )
    log.warning("render.val_share %g gives no document to val, of %d: one is taken for it", val_share, number)
    lowest, numbers = min(ranks), count()
    rest = files["train"].with_suffix(".rest")
    with rest.open("wb") as train, files["val"].open("wb") as val:
        for unit in read_units(files["train"]):
            kept, taken = _divided(unit, lowest) if lowest in _ranks(unit) else (unit, None)
            if taken:
                val.write(unit_line(taken))
            if kept:
                train.write(unit_line(kept.model_copy(update={"unit": next(numbers)})))
    rest.replace(files["train"])


def _ranks(unit: SourceUnit) -> list[int]:
    """The ranks of a unit's documents that a hash splits; a range of a bulk tar has one."""
    if unit.tar:
        return [rank(f"{unit.files[0].uri}:{unit.tar.first}")]
    return [rank(document.id) for document in unit.listed() if unit.source.split_of(document, 1.0) == "val"]


def _divided(unit: SourceUnit, lowest: int) -> tuple[SourceUnit | None, SourceUnit | None]:
    """A unit without its document of the lowest rank, or a range without its last paper; and a unit of that alone."""
    if unit.tar:
        kept = unit.tar.model_copy(update={"count": unit.tar.count - 1, "last": False})
        taken = unit.tar.model_copy(update={"first": unit.tar.first + unit.tar.count - 1, "count": 1})
        alone = unit.model_copy(update={"unit": 0, "tar": taken})
        return unit.model_copy(update={"tar": kept}) if kept.count else None, alone
    documents = unit.listed()
    chosen = min(documents, key=lambda document: rank(document.id))
    documents.remove(chosen)
    rest = SourceUnit.of(unit.source, documents, unit.affinity) if documents else None
    return rest, SourceUnit.of(unit.source, [chosen], unit.affinity)
