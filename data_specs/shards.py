"""Shards: deterministic WebDataset tars and their index, written in one pass and read by memory map.

A shard is NNNNNN-<sha256[:8]>.tar with NNNNNN-<sha256[:8]>.index.npy beside it, one row a member.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from threading import Event
from typing import BinaryIO, NamedTuple, Protocol, cast

import numpy as np

from data_specs import cache, storage
from data_specs.npy import read_array
from data_specs.records import Sample

INDEX_DTYPE = np.dtype([("sample", "<u4"), ("key_hash", "<u8"), ("field", "S12"), ("offset", "<u8"), ("size", "<u8")])
IndexRow = tuple[int, int, bytes, int, int]
BLOCK = 512
HASHES_KEPT = 1 << 16
_hashed: dict[tuple[int, ...], str] = {}  # of files that this process has read, by inode, size, time of change
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class WrittenShard(NamedTuple):
    """A finished shard: where each sample's first bytes begin in the tar, bytes, digests of tar and index."""

    offsets: list[int]
    filesize: int
    md5sum: str
    sha256: str
    index_sha256: str

    @property
    def nsamples(self) -> int:
        """Number of samples."""
        return len(self.offsets)


def write_shard(samples: Iterable[Sample], tar_path: Path, index_path: Path) -> WrittenShard:
    """Write samples as a tar with fixed headers, and its index; equal samples give equal bytes.

    Raises:
        ValueError: a key with a dot or slash, or that comes twice.
    """
    rows = list[IndexRow]()
    offsets = list[int]()
    sha = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False)
    with tar_path.open("wb") as file:
        for block in _blocks(samples, rows, offsets):
            file.write(block)
            sha.update(block)
            md5.update(block)
        filesize = file.tell()
    np.save(index_path, np.array(rows, dtype=INDEX_DTYPE), allow_pickle=False)
    index_sha256 = hashlib.sha256(index_path.read_bytes()).hexdigest()
    return WrittenShard(offsets, filesize, md5.hexdigest(), sha.hexdigest(), index_sha256)


def _blocks(samples: Iterable[Sample], rows: list[IndexRow], offsets: list[int]) -> Iterator[bytes]:
    """Yield the bytes of a tar, member by member; `rows` gets the index, `offsets` where each sample begins."""
    seen = set[str]()
    offset = BLOCK  # behind the member's header
    for number, sample in enumerate(samples):
        _check_key(sample.key, seen)
        hashed = key_hash(sample.key)
        offsets.append(offset)
        for field, data in sample.fields.items():
            padding = bytes(-len(data) % BLOCK)
            rows.append((number, hashed, field.encode(), offset, len(data)))
            yield b"".join((_header(f"{sample.key}.{field}", len(data)), data, padding))
            offset += BLOCK + len(data) + len(padding)
    yield bytes(2 * BLOCK)


def key_hash(key: str) -> int:
    """Return the first eight bytes of the key's SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")


def _check_key(key: str, seen: set[str]) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"sample key {key!r}: a key is 1 to 80 of A-Z a-z 0-9 _ - (no dot)")
    if key in seen:
        raise ValueError(f"sample key {key!r} comes twice in one shard")
    seen.add(key)


def _header(name: str, size: int) -> bytes:
    """Return a USTAR header with fixed mode, owner and time: a template with name, size and checksum filled in."""
    header = bytearray(_TEMPLATE)
    header[: len(name)] = name.encode()
    header[124:135] = b"%011o" % size
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _template() -> bytes:
    """Return a header without name, size, owner and time, its checksum field blank as the checksum counts it."""
    header = bytearray(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT))
    header[148:156] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()


def index_uri(tar_uri: str) -> str:
    """Return the address of the index that belongs to a tar."""
    return tar_uri.removesuffix(".tar") + ".index.npy"


class Digests(Protocol):
    """What a receipt, a manifest or a unit says of a shard's bytes; None where it is of before and does not say it."""

    @property
    def sha256(self) -> str | None: ...
    @property
    def index_sha256(self) -> str | None: ...
    @property
    def table_sha256(self) -> str | None: ...


def open_verified(uri: str, sha256: str | None, wait: Event | None = None) -> BinaryIO:
    """Open a file of known bytes, local or in the cache, where it stays as long as it is open or mapped.

    A file is hashed once by each process, as long as its time of change is the same; a damaged cached one is fetched
    once more.

    Args:
        uri: the file.
        sha256: of its bytes.
        wait: as for `storage.local_copy`.

    Raises:
        ValueError: its bytes are others.
    """
    assert sha256, f"{uri}: opened without its digest"
    for _ in range(2):
        file = storage.local_copy(uri, wait).open("rb")
        if storage.is_remote(uri):
            cache.hold(file)
        if (found := _sha256(file)) == sha256:
            return file
        file.close()
        cache.discard(Path(file.name))
    raise ValueError(f"{uri}: its bytes are not those that were made (sha256 {found[:12]}…); run `dnd verify`")


def _sha256(file: BinaryIO) -> str:
    status = os.fstat(file.fileno())
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _hashed:
        if len(_hashed) >= HASHES_KEPT:
            _hashed.pop(next(iter(_hashed)), None)
        _hashed[key] = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
        file.seek(0)
    return _hashed[key]


class Shard:
    """One shard, memory-mapped: bytes of any field of any sample without reading the rest.

    Args:
        tar_uri: address of the tar.
        digests: what its receipt or manifest says that the bytes of tar, index and table are.

    Raises:
        ValueError: they are not, or index and tar do not fit together.
    """

    def __init__(self, tar_uri: str, digests: Digests) -> None:
        self.uri = tar_uri
        self.digests = digests
        with open_verified(index_uri(tar_uri), digests.index_sha256) as file:
            self.rows = read_array(file)
        if self.rows.dtype != INDEX_DTYPE:
            raise ValueError(f"{index_uri(tar_uri)}: not the index of a shard")
        with open_verified(tar_uri, digests.sha256) as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self.rows) and int((self.rows["offset"] + self.rows["size"]).max()) > len(self.map):
            raise ValueError(f"{tar_uri}: shorter than its index says; run `dnd verify`")
        self.first_rows = np.flatnonzero(np.diff(self.rows["sample"], prepend=-1))

    def __len__(self) -> int:
        return len(self.first_rows)

    def field_rows(self, field: str) -> np.ndarray:
        """Return the rows of one field, one per sample.

        Raises:
            ValueError: a sample lacks it.
        """
        rows: np.ndarray = self.rows[self.rows["field"] == field.encode()]
        if len(rows) != len(self):
            raise ValueError(f"{self.uri}: {len(rows)} of {len(self)} samples have a field {field}")
        return rows

    def fields(self, number: int) -> dict[str, bytes]:
        """Return the raw bytes of a sample's fields by extension."""
        start = int(self.first_rows[number])
        stop = int(self.first_rows[number + 1]) if number + 1 < len(self) else len(self.rows)
        rows = self.rows[start:stop]
        return {r["field"].decode(): self.map[int(r["offset"]) : int(r["offset"] + r["size"])] for r in rows}

    def key(self, number: int) -> str:
        """Return the key of a sample, read from the tar header before its first member."""
        row = self.rows[self.first_rows[number]]
        offset = int(row["offset"])
        key = self.map[offset - BLOCK : offset - BLOCK + 100].partition(b".")[0].decode("ascii", "replace")
        if key_hash(key) != row["key_hash"]:
            raise ValueError(f"{self.uri}: sample {number} is not the one its index names; run `dnd verify`")
        return key
