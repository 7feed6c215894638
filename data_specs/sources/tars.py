"""Members of tars by offset and size, from the headers alone: nothing is unpacked, no member's name is ever a path."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO, NamedTuple, Self

from data_specs.records import FileInfo, Span
from data_specs.sources.names import as_utf8
from data_specs.sources.packed import open_unpacked

CONTENT_BYTES = 64  # a member of a wanted suffix is read up to this many bytes
HEADER_BYTES = 64 << 10  # of a long name or a PAX header: names are at most 4 KiB on Linux
MAX_MEMBERS = 500_000  # of one tar
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES[:2])


class Member(NamedTuple):
    """One member: its bytes are `size` from `start`; None where it is no plain file (a link, a device)."""

    name: str
    start: int | None
    size: int
    content: bytes = b""

    def span(self, file: FileInfo) -> Span:
        """Return where it lies in its tar."""
        return Span(file, self.start, 0 if self.start is None else self.size)


class DamagedTarError(ValueError):
    """A tar whose headers cannot be followed to the end."""


class _Info(tarfile.TarInfo):
    """A header that is damaged raises, where tarfile alone takes it for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise DamagedTarError(str(error)) from None
        except RecursionError:
            raise DamagedTarError("extended headers without end") from None

    def _proc_member(self, tar: tarfile.TarFile) -> Self:
        """tarfile's own entry point for subclasses: a name or PAX header is held in memory as long as it says it is."""
        if self.type in _EXTENDED and not 0 <= self.size <= HEADER_BYTES:
            raise DamagedTarError(f"an extended header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def members(stream: BinaryIO, content_of: str = "\0") -> Iterator[Member]:
    """Yield all members but folders, in order, hard links as the file that they name.

    Goes from header to header where the stream can seek, else reads it through; tars joined to one are read whole.

    Args:
        stream: the tar.
        content_of: members whose name ends so bring along their first CONTENT_BYTES.

    Raises:
        DamagedTarError: after what came before the damage.
    """
    known = dict[str, Member]()  # plain members, for hard links
    try:
        with closing(_open(stream)) as tar:
            for number, info in enumerate(iter(tar.next, None)):
                tar.members = []  # type: ignore[attr-defined]  # else they gather in memory
                if number == MAX_MEMBERS:
                    raise DamagedTarError(f"more than {MAX_MEMBERS} members: split it into smaller ones")
                if info.isdir():
                    continue
                member = known.get(_plain(info.linkname)) if info.islnk() else _member(tar, info, content_of)
                member = (member or Member("", None, 0))._replace(name=as_utf8(info.name))
                if member.start is not None:
                    known[_plain(info.name)] = member
                yield member
    except tarfile.TarError as error:
        raise DamagedTarError(str(error)) from None


def _open(stream: BinaryIO) -> tarfile.TarFile:
    mode = "r:" if stream.seekable() else "r|"
    return tarfile.open(fileobj=stream, mode=mode, tarinfo=_Info, ignore_zeros=True)  # type: ignore[call-overload,no-any-return]


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, content_of: str) -> Member:
    if not info.isreg() or info.issparse():
        return Member(info.name, None, info.size)
    head = tar.extractfile(info) if info.name.lower().endswith(content_of) else None
    return Member(info.name, info.offset_data, info.size, head.read(CONTENT_BYTES) if head else b"")


def _plain(name: str) -> str:
    return name.removeprefix("./")


def list_members(file: FileInfo, content_of: str = "\0") -> Iterator[Member]:
    """Yield the members of a tar, packed or not.

    Raises:
        ValueError: it is damaged; the message names the tar.
    """
    try:
        with open_unpacked(file.uri) as stream:
            yield from members(stream, content_of)
    except DamagedTarError as error:
        raise ValueError(f"{file.uri}: a damaged tar ({error}); repair it or take it away") from None
