"""What the units of sources read, for the tests of sources."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from data_specs.records import RawDocument, SourceUnit, parse_unit, unit_line
from data_specs.sections import Limits, Render
from data_specs.source import Source
from data_specs.sources.planning import cut
from data_specs.sources.reading import read_unit

LIMITS = Limits()


def read_all(source: Source, max_bytes: int = LIMITS.document_bytes, **render: Any) -> dict[str, list[RawDocument]]:
    """What the units of one source read, by split; each unit goes through its line of a plan."""
    return read_sources([source], max_bytes, **render)


def read_sources(
    sources: list[Source], max_bytes: int = LIMITS.document_bytes, **render: Any
) -> dict[str, list[RawDocument]]:
    """What the units of some sources read, by split."""
    made: dict[str, list[RawDocument]] = {"train": [], "val": []}
    for split, unit in cut(Render(sources=sources, **render), sources):
        planned = parse_unit(unit_line(unit), "unit")
        assert isinstance(planned, SourceUnit)
        made[split] += read_unit(planned, max_bytes)
    return made


def listed_ids(source: Source) -> list[str]:
    """The ids of all documents of a source, in the order of the plan."""
    return [d.id for _, unit in cut(Render(sources=[source], val_share=0), [source]) for d in unit.documents]


def texts(documents: list[RawDocument], key: str = "text") -> list[tuple[str, str]]:
    """(id, text) of documents that are lines of JSON."""
    return [(d.id, json.loads(d.data)[key]) for d in documents]


def write_tar(path: Path, members: list[tuple[str, bytes | None]]) -> Path:
    """A tar of files; None makes a folder."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data or b""), tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data or b""))
    return path
