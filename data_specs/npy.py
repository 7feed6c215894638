"""NumPy's own format (`.npy`): written as one string of bytes, read safely by several threads at once.

NumPy parses the header of an array with `ast.literal_eval`. Before Python 3.11.8 and 3.12.2, parsers in two threads
can end in `SystemError: AST constructor recursion depth mismatch` (python/cpython issue 106905), so that a sound file
seems damaged. Here one thread parses at a time.
"""

from __future__ import annotations

import io
from functools import cache
from threading import Lock
from typing import IO

import numpy as np

one_parser = Lock()


def read_array(stream: IO[bytes]) -> np.ndarray:
    """Return the array that begins here.

    Raises:
        ValueError, EOFError: it is no array of plain values.
    """
    with one_parser:
        array: np.ndarray = np.load(stream, allow_pickle=False)
    return array


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the shape, Fortran order and dtype of the array that begins here.

    The stream then stands at its first value.

    Raises:
        ValueError: no header of NumPy's format 1.0 or 2.0.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version[0]}.{version[1]} of .npy, where 1.0 and 2.0 are read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with one_parser:
        return read(stream)


def array_bytes(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a .npy file."""
    return header_bytes(array.shape, array.dtype.str) + array.tobytes()


@cache
def header_bytes(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return the header of a .npy file, behind which the array's values stand in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
