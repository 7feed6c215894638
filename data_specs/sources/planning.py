"""All sources of a spec together: the numbers of their classes, and their documents cut into units by split.

Validation is never empty unawares: where no document falls to it, the one of the lowest rank is taken.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from data_specs import storage
from data_specs.records import FileInfo, SourceUnit, parse_unit, unit_line
from data_specs.source import Source, rank
from data_specs.sources.names import relative

if TYPE_CHECKING:
    from data_specs.sections import Render

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
    """Cut prepared sources once, by streaming, into a file of units, one per line, for each split.

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


def listing_digest(units: Path) -> str:
    """Return the SHA-256 (hex) of what a file of units lists: names under the source, sizes, documents; no places."""
    digest = hashlib.sha256()
    for unit in read_units(units):
        files = tuple(FileInfo(relative(unit.source.address, file.uri), file.size, "") for file in unit.files)
        alone = unit.source.model_copy(update=dict.fromkeys(unit.source.places, ""))
        digest.update(unit_line(unit.model_copy(update={"source": alone, "files": files, "affinity": None})))
    return digest.hexdigest()


def places_of(render: Render, inputs_uri: str, prepared: Sequence[Source] | None = None) -> tuple[str, ...]:
    """Return where the documents of a spec lie: `inputs_uri`, and each source's places, "" for none.

    Args:
        prepared: the sources as they were prepared; where none of them was made under `inputs_uri`, "" stands there.
    """
    named = (getattr(source, key) for source in render.sources for key in source.places)
    places = [storage.absolute(uri, is_source=True) if uri else "" for uri in named]
    lies = (str(getattr(source, key)) for source in prepared or () for key in source.places)
    is_used = prepared is None or any(uri.startswith(inputs_uri) for uri in lies)
    return inputs_uri if is_used else "", *places


def relocated(unit: SourceUnit, moved: Sequence[tuple[str, str]], is_read: bool = True) -> SourceUnit:
    """Return a unit whose files lie elsewhere now; a tag of the old place says nothing of the new one.

    Args:
        moved: (old place, new place) of each folder or file that has moved.
        is_read: whether the files will be opened, so that their new tags are asked for.
    """
    if not moved:
        return unit
    places = [_new_place(file.uri, moved) for file in unit.files]
    at = _file_at if is_read else _renamed
    named = [at(uri, file) for uri, file in zip(places, unit.files, strict=True)]
    keys = (key for key in unit.source.places if getattr(unit.source, key))
    source = unit.source.model_copy(update={key: _new_place(getattr(unit.source, key), moved) for key in keys})
    affinity = unit.affinity and _new_place(unit.affinity, moved)
    return unit.model_copy(update={"source": source, "files": tuple(named), "affinity": affinity})


def _new_place(uri: str, moved: Sequence[tuple[str, str]]) -> str:
    for old, new in moved:
        if uri == old or uri.startswith(old.rstrip("/") + "/"):
            return new.rstrip("/") + uri.removeprefix(old.rstrip("/"))
    return uri


def _file_at(uri: str, planned: FileInfo) -> FileInfo:
    """Return the file at its new address, with its tag there where it has the size that was planned."""
    found = storage.stat(uri) if uri != planned.uri else None
    return found if found and found.size == planned.size else _renamed(uri, planned)


def _renamed(uri: str, planned: FileInfo) -> FileInfo:
    return planned._replace(uri=uri)


def _take_one_for_validation(files: dict[str, Path], val_share: float) -> None:
    """Move the document of the lowest rank, of those that a hash splits, from train to val."""
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
    lowest = min(ranks)
    numbers = count()
    rest = files["train"].with_suffix(".rest")
    with rest.open("wb") as train, files["val"].open("wb") as val:
        for unit in read_units(files["train"]):
            kept, taken = _split_off_lowest(unit, lowest) if lowest in _ranks(unit) else (unit, None)
            if taken:
                val.write(unit_line(taken))
            if kept:
                train.write(unit_line(kept.model_copy(update={"unit": next(numbers)})))
    rest.replace(files["train"])


def _ranks(unit: SourceUnit) -> list[int]:
    """Return the ranks of a unit's documents that a hash splits; a range of a bulk tar has one."""
    if unit.tar:
        return [rank(f"{relative(unit.source.address, unit.files[0].uri)}:{unit.tar.first}")]
    return [rank(document.id) for document in unit.listed() if unit.source.split_of(document, 1.0) == "val"]


def _split_off_lowest(unit: SourceUnit, lowest: int) -> tuple[SourceUnit | None, SourceUnit | None]:
    """Return a unit without its document of lowest rank (a range: without its last paper), and a unit of that alone."""
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
