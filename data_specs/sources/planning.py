"""All sources of a spec together: the numbers of their classes, and their documents cut into units by split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

from data_specs.records import SourceUnit
from data_specs.source import Source

if TYPE_CHECKING:
    from data_specs.spec import Render


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
