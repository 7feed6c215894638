"""Members of tars by offset and size, from the headers alone: nothing is unpacked, no member's name is ever a path."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO, NamedTuple

from data_specs import storage
from data_specs.records import FileInfo

CONTENT_BYTES = 64  # a member of a wanted suffix is read up to this many bytes


class Member(NamedTuple):
    """One member: its bytes are `size` from `start`; None where it is no plain file (a link, a device)."""

    name: str
    start: int | None
    size: int
    content: bytes = b""


class Damaged(ValueError):
    """A tar whose headers cannot be followed to the end."""


class _Info(tarfile.TarInfo):
    """A header that is damaged raises, where tarfile alone takes it for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise Damaged(str(error)) from None


def members(stream: BinaryIO, content_of: str = "\0") -> Iterator[Member]:
    """All members but folders, in order; those whose name ends in `content_of` with their first bytes.

    Goes from header to header where the stream can seek, else reads it through. Raises Damaged after what came before.
    """
    try:
        with closing(tarfile.open(fileobj=stream, mode="r:" if stream.seekable() else "r|", tarinfo=_Info)) as tar:
            while info := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # else they gather in memory
                if not info.isdir():
                    plain = info.isreg() and not info.issparse()
                    head = tar.extractfile(info) if plain and info.name.endswith(content_of) else None
                    content = head.read(CONTENT_BYTES) if head else b""
                    yield Member(info.name, info.offset_data if plain else None, info.size, content)
    except tarfile.TarError as error:
        raise Damaged(str(error)) from None


def members_of(file: FileInfo, content_of: str = "\0") -> Iterator[Member]:
    """The plain members of a tar that is listed. Raises ValueError naming the tar where it is damaged."""
    try:
        with storage.open_stream(file.uri) as stream:
            yield from (member for member in members(stream, content_of) if member.start is not None)
    except Damaged as error:
        raise ValueError(f"{file.uri}: a damaged tar ({error}); repair it or take it away") from None
