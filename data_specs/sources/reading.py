"""Bytes of planned documents: each file is first compared with the plan, neighbours are read together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

from data_specs import storage
from data_specs.records import FileInfo, RawDocument, SourceUnit, Span
from data_specs.source import key_of
from data_specs.sources.names import packing
from data_specs.sources.packed import unpacked_copy

READ_AHEAD = 8 << 20  # bytes of neighbouring documents that are read at a time
GAP = 256 << 10  # bytes between documents that are read along rather than asked for anew


def read_unit(unit: SourceUnit, max_bytes: int) -> Iterator[RawDocument]:
    """Read every document of a unit, in its order, with keys that are unique in the unit.

    Args:
        unit: the planned unit.
        max_bytes: a larger document is rejected, and not held in memory.

    Raises:
        ValueError: a file is not the one that was planned.
        FileNotFoundError: a file is gone.
    """
    for file in unit.files:
        if storage.stat(file.uri) != file:
            raise ValueError(f"{file.uri}: is not the file that was planned (its size or etag changed); plan anew")
    seen = Counter[str]()
    for raw in unit.source.read(unit, max_bytes):
        key = raw.key or key_of(raw.id)
        yield raw._replace(key=_unique(key, seen[key]))
        seen[key] += 1


def _unique(key: str, times_seen: int) -> str:
    """Return the key, with a hash of how often it came before in the unit where it did."""
    return f"{key}-{hashlib.sha256(f'{key}/{times_seen}'.encode()).hexdigest()[:8]}" if times_seen else key


def read_spans(spans: Sequence[Span], max_bytes: int) -> Iterator[bytes | None]:
    """Read whole files or ranges of them, in order; None for one over `max_bytes`."""
    for file, of_file in groupby(spans, lambda span: span.file):
        with _reader(file) as read:
            for together in _read_together(list(of_file), max_bytes):
                start = together[0].start or 0
                fits = _size(together[0]) <= max_bytes
                data = read(start, _stop(together[-1]) - start) if fits else b""
                for span in together:
                    begin = (span.start or 0) - start
                    yield data[begin : begin + _size(span)] if _size(span) <= max_bytes else None


def _size(span: Span) -> int:
    return span.file.size if span.length is None else span.length


def _stop(span: Span) -> int:
    return (span.start or 0) + _size(span)


def _read_together(spans: list[Span], limit: int) -> Iterator[list[Span]]:
    """Spans whose bytes are read at once: near each other, READ_AHEAD in all; too large ones stand alone."""
    together: list[Span] = []
    for span in spans:
        start = span.start or 0
        near = bool(together) and _stop(together[-1]) <= start <= _stop(together[-1]) + GAP
        fits = near and _stop(span) - (together[0].start or 0) <= READ_AHEAD
        if together and (not fits or max(_size(span), _size(together[-1])) > limit):
            yield together
            together = []
        together.append(span)
    if together:
        yield together


@contextmanager
def _reader(file: FileInfo) -> Iterator[Callable[[int, int], bytes]]:
    """Return a function (start, length) -> bytes of a file; a packed one is unpacked into the cache of each node."""
    if packing(file.uri):
        with unpacked_copy(file).open("rb") as unpacked:  # as long as it is open the cache may drop it

            def read(start: int, length: int) -> bytes:
                unpacked.seek(start)
                return unpacked.read(length)

            yield read
    else:
        yield partial(storage.read_bytes, file.uri)
