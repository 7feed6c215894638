"""Arrays read by several threads."""

from __future__ import annotations

import gc
import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_specs.npy import array_bytes, read_array, read_header
from data_specs.shards import INDEX_DTYPE


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that change places within the parser: each collection of garbage lets the others run."""
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()

    def pause(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    gc.callbacks.append(pause)
    gc.set_threshold(1)
    sys.setswitchinterval(1e-6)
    yield
    gc.callbacks.remove(pause)
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)


def test_threads_read_heads_beside_each_other(hasty: None) -> None:
    stored = io.BytesIO()
    index = np.zeros(9, INDEX_DTYPE)
    np.save(stored, index)

    def read(number: int, deeper: int) -> bool:
        if deeper:  # the parsers' depths are mixed up, which shows only where they differ
            return read(number, deeper - 1)
        whole = read_array(io.BytesIO(stored.getvalue()))
        head = read_header(io.BytesIO(stored.getvalue()))
        return bool((whole == index).all()) and head == ((9,), False, INDEX_DTYPE)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: read(number, number % 7), range(3000)))


def test_another_format_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"format 3\.0 of \.npy"):
        read_header(io.BytesIO(b"\x93NUMPY\x03\x00" + bytes(8)))


def test_npy_is_numpys() -> None:
    for array in (np.arange(24, dtype=np.uint16).reshape(1, 2, 3, 4), np.zeros((2, 3))[:, ::2]):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array))
        assert array_bytes(array) == buffer.getvalue()
