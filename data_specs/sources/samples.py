"""Samples of WebDataset tars: keys and fields by webdataset's own functions; the rest is rejected or counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from data_specs.records import Document, FileInfo, Reason
from data_specs.sources.listed import NotTaken
from data_specs.sources.names import is_hidden
from data_specs.sources.tables import MAX_CLASS
from data_specs.sources.tars import Member, list_members

IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"),
    *(".jxl", ".jp2", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".tga", ".ico", ".exr", ".hdr"),
)
CAPTIONS = ("txt", "caption")


class TarEntry(TypedDict):
    """A member of a tar as webdataset's functions take it."""

    fname: str
    data: Member
    __url__: str


def is_image(name: str) -> bool:
    """Return whether a name is that of an image of any format; which are decoded, render.limits says."""
    return name.lower().endswith(IMAGES) and not is_hidden(name)


def list_samples(file: FileInfo, folder: str, labelled: bool, not_taken: NotTaken) -> Iterator[Document]:
    """List the images of a tar: neighbours with the same name up to the first dot are one sample.

    The fields x.jpg and x.cls (v2.left.jpg and v2.left.cls) belong together, else cls is the class of all.

    Args:
        file: the tar.
        folder: what the documents' ids begin with.
        labelled: whether images need a class; else they may have a caption (.txt).
        not_taken: counts the members that are no part of a document.
    """
    from webdataset.tariterators import group_by_keys

    rejected = list[Document]()
    entries = _usable(file, folder, rejected, not_taken)
    for sample in group_by_keys(entries):
        yield from rejected
        rejected.clear()
        yield from _images_of(sample, file, folder, labelled, not_taken)
    yield from rejected


def _usable(file: FileInfo, folder: str, rejected: list[Document], not_taken: NotTaken) -> Iterator[TarEntry]:
    """Members as webdataset's functions want them; images that cannot be part of a sample are put to the rejected."""
    from webdataset.tariterators import base_plus_ext

    seen = set[str]()
    for member in list_members(file, ".cls"):
        name = member.name.removeprefix("./")
        key, field = base_plus_ext(name)
        if is_hidden(name):
            not_taken.add(folder + name, "AppleDouble")
        elif reason := _unusable(member, key, field, seen):
            if is_image(name):
                rejected.append(Document(folder + name, member.span(file), reason=reason, detail=name))
            else:
                not_taken.add(folder + name, reason.value)
        else:
            yield {"fname": name, "data": member, "__url__": file.uri}


def _unusable(member: Member, key: str | None, field: str | None, seen: set[str]) -> Reason | None:
    """Why a member can be no field of a sample, or None; what was seen is added to `seen`."""
    if member.start is None:
        return Reason.NOT_A_FILE
    if not key or not field or not key.strip() or field.startswith("__"):
        return Reason.NAME_NOT_USABLE
    if (name := f"{key}.{field.lower()}") in seen:
        return Reason.SECOND_OF_KEY
    seen.add(name)
    return None


def _images_of(
    sample: dict[str, str | Member], file: FileInfo, folder: str, labelled: bool, not_taken: NotTaken
) -> Iterator[Document]:
    key = str(sample["__key__"]).lstrip("/")
    fields = {field: value for field, value in sample.items() if isinstance(value, Member)}
    images = {field: member for field, member in fields.items() if is_image(f"x.{field}")}
    stems = dict[str, str]()
    used = set[str]()
    for field, member in images.items():
        before = field.rpartition(".")[0]
        document = Document(f"{folder}{key}{before and f'.{before}'}", member.span(file))
        if before in stems:
            detail = f"{key}.{field}, beside {stems[before]}"
            yield document._replace(reason=Reason.SECOND_OF_KEY, detail=detail)
            continue
        stems[before] = field
        names = [f"{before}.cls", "cls"] if labelled else [f"{before}.{name}".lstrip(".") for name in CAPTIONS]
        beside = next((name for name in names if name in fields), "")
        used.add(beside)
        if labelled:
            yield _labelled(document, fields[beside].content.strip() if beside else b"")
        else:
            yield document._replace(caption=fields[beside].span(file)) if beside else document
    for field in fields:
        if field not in images and field not in used:
            not_taken.add(f"{folder}{key}.{field}")


def _labelled(document: Document, text: bytes) -> Document:
    if text.isdigit() and int(text) < MAX_CLASS:
        return document._replace(cls=int(text))
    return document._replace(reason=Reason.NO_CLASS, detail=text.decode("utf-8", "replace"))
