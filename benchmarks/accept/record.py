"""Rows of the acceptance: what was measured, what was estimated before, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field

from data_specs.records import Record


class Row(Record):
    """One figure. Without `least` and `most` it is only told."""

    part: str
    what: str
    measured: float | None = Field(description="null: it was not measured, see `note`")
    unit: str = ""
    estimated: float | None = None
    least: float | None = None
    most: float | None = None
    note: str = ""
    failed: bool = False

    @property
    def misses(self) -> bool:
        """Whether it is not what it should be."""
        low = self.least is not None and (self.measured is None or self.measured < self.least)
        high = self.most is not None and (self.measured is None or self.measured > self.most)
        return self.failed or low or high


class Acceptance(Record):
    """What accept.json holds."""

    device: str
    torch: str
    tiny: bool
    seconds: dict[str, float]
    rows: list[Row]

    @property
    def misses(self) -> list[Row]:
        """Rows that are not what they should be."""
        return [row for row in self.rows if row.misses]


class Setting(NamedTuple):
    """Where and how large the parts run."""

    device: torch.device
    tiny: bool
    reference: Path | None  # a checkout of the authors' code
    folder: Path  # for what the parts write

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


Part = Callable[[Setting], Iterator[Row]]
WIDTHS = (9, 60, 16, 9, 16, 0)


def _columns(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


HEAD = _columns(("part", "what", "measured", "estimated", "allowed", ""))  # of the table to print


def row_line(row: Row) -> str:
    """Return a row formatted as a line of the table."""
    figures = _figure(row.measured, row.unit), _figure(row.estimated)
    return _columns((row.part, row.what, *figures, _allowed(row), _verdict(row)))


def _figure(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g} {unit}".rstrip()


def _allowed(row: Row) -> str:
    if row.least is not None and row.most is not None:
        return f"{row.least:.4g} to {row.most:.4g}"
    return f">= {row.least:.4g}" if row.least is not None else f"<= {row.most:.4g}" if row.most is not None else ""


def _verdict(row: Row) -> str:
    return f"MISS {row.note}".rstrip() if row.misses else row.note
