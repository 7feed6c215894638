"""Samples: what a shard holds of each, what its json and its row of the table say, and how the reader gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, NotRequired, Self, TypedDict

from pydantic import ConfigDict, model_validator
from pydantic_core import from_json, to_json

from data_specs.records.base import Record
from data_specs.records.reasons import Reason

if TYPE_CHECKING:
    import numpy as np


class TableRow(TypedDict):
    """A sample in the table beside its shard, but for key and class; x0 … y1 is the crop, in pixels of the page."""

    document: str
    page: int
    x0: int
    y0: int
    x1: int
    y1: int
    num_words: int
    num_clipped: int
    ink: float
    script: str
    hash: int
    source: str
    licence: str
    title: str
    url: str
    text: str


class Sample(NamedTuple):
    """One sample of a shard: `fields` maps an extension (png, cls, json, codes.npy) to its bytes; KEY has no dot.

    Without `row` (`table.row_of`) its row of the table is read from the json.
    """

    key: str
    fields: dict[str, bytes]
    row: TableRow | None = None


class Dropped(NamedTuple):
    """Something offered that was not written, why, and what is known beyond the reason (exception text, numbers)."""

    key: str
    source: str
    reason: Reason
    detail: str = ""


Box = tuple[float, float, float, float]


class SampleInfo(Record):
    """The json of an image sample: every key in every sample, always of one type, never null.

    `words`, `boxes` (x0, y0, x1, y1 in stored pixels) and `clipped` (cut by the picture's edge) are parallel; `text` is
    what can be read, without clipped words. `box` is the crop in pixels of the page. Words are not `trusted` where a
    page's file does not say what its letters are, or runs from top to bottom.
    """

    id: str
    source: str = ""
    licence: str = ""
    title: str = ""
    authors: str = ""
    categories: str = ""
    url: str = ""
    engine: str = ""
    page: int = -1
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    text: str = ""
    words: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    clipped: tuple[bool, ...] = ()
    trusted: bool = True

    def to_json(self) -> bytes:
        """Return the same bytes in a quarter of the time: this one holds no records, and there are millions of it."""
        return to_json(dict(sorted(self))) + b"\n"

    @model_validator(mode="after")
    def _are_parallel(self) -> Self:
        if not len(self.words) == len(self.boxes) == len(self.clipped):
            raise ValueError("words, boxes and clipped differ in length")
        return self


class InfoFields(TypedDict, total=False):
    """Fields of a `SampleInfo` as plain values, those that are known; tuples are lists where they come from JSON."""

    id: str
    source: str
    licence: str
    title: str
    authors: str
    categories: str
    url: str
    engine: str
    page: int
    box: Sequence[int]
    text: str
    words: Sequence[str]
    boxes: Sequence[Sequence[float]]
    clipped: Sequence[bool]
    trusted: bool


class StoredInfo(SampleInfo):
    """The json of any sample as it is read: that of codes holds a few of the keys, a stage of your own may add some."""

    model_config = ConfigDict(extra="allow")

    id: str = ""


def parse_info(data: bytes, origin: str) -> InfoFields:
    """Read the json of a sample, the keys that it holds.

    Raises:
        ValueError: one line with `origin`, the key and what is wrong.
    """
    StoredInfo.parse(data, origin)
    try:
        found: InfoFields = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"{origin}: not valid JSON ({error})") from None
    return found


class Item(TypedDict):
    """A sample as the reader gives it: image uint8 [H, W, 3] or codes uint16 [views, h, w, d]."""

    __key__: str
    image: NotRequired[np.ndarray]
    codes: NotRequired[np.ndarray]
    cls: int
    json: InfoFields
