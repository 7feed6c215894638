"""What the units of sources offer, for the tests of sources."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from data_specs.records import parse_unit, unit_line
from data_specs.spec import Limits, Render, Source
from pipeline.sources import cut
from pipeline.sources.document import Offered
from pipeline.sources.reading import read_unit

LIMITS = Limits()


def read_all(source: Source, limits: Limits = LIMITS, **render: Any) -> dict[str, list[Offered]]:
    """What the units of one source offer, by split."""
    made: dict[str, list[Offered]] = {"train": [], "val": []}
    for split, unit in cut(Render(sources=[source], **render), [source]):
        made[split] += read_unit(parse_unit(unit_line(unit), "unit"), limits)
    return made


def texts(offered: list[Offered], key: str = "text") -> list[tuple[str, str]]:
    return [(o.id, json.loads(o.data)[key]) for o in offered]


def write_tar(path: Path, members: list[tuple[str, bytes | None]]) -> Path:
    """A tar of files; None makes a folder."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data or b""), tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data or b""))
    return path
