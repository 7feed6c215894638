"""Images with classes: folder per class, a flat folder with a list of classes, WebDataset tars, Parquet files.

Classes known by name are numbered in the order of all sources' sorted names, so that train and val agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from data_specs import storage
from data_specs.records import Document, FileInfo
from data_specs.spec import ImageSource, Source
from pipeline.sources.document import relative, stem
from pipeline.sources.tables import named_classes, table_documents
from pipeline.sources.tars import Member, members_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def image_documents(source: ImageSource, numbers: Mapping[str, int]) -> Iterator[Document]:
    """Every image of a source; `numbers` gives a class its number. WebDataset and Parquet sets bring numbers along."""
    listed = _mapping(source.mapping) if source.mapping else None
    for file in storage.list_files(source.uri):
        name = relative(source.uri, file.uri)
        if name.endswith(".tar"):
            yield from _tar_samples(file, "" if file.uri == source.uri else f"{stem(name)}/")
        elif name.endswith(".parquet"):
            yield from table_documents(source.uri, file, "id", source.image_key, (source.class_key, numbers))
        elif (cls := _class_of(name, listed)) is not None:
            yield Document(name, file, cls=numbers.get(cls, -1))


def _class_of(name: str, listed: Mapping[str, str] | None) -> str | None:
    """The name of an image file's class, "" for one that the list lacks; None for what is no image of a class."""
    if not name.lower().endswith(SUFFIXES):
        return None
    if listed is not None:
        return listed.get(stem(name.rpartition("/")[2]), "")
    return name.partition("/")[0] if "/" in name else None


def class_numbers(sources: Sequence[Source]) -> dict[str, int]:
    """Number of each class that is known by name: folders of images, classes of a list or of a column of names."""
    names = {name for s in sources if isinstance(s, ImageSource) for name in _names(s)}
    return {name: number for number, name in enumerate(sorted(names))}


def _names(source: ImageSource) -> set[str]:
    if source.mapping:
        return set(_mapping(source.mapping).values())
    names = set[str]()
    for file in storage.list_files(source.uri):
        if file.uri.endswith(".parquet"):
            names |= named_classes(file, source.class_key)
        elif name := _class_of(relative(source.uri, file.uri), None):
            names.add(name)
    return names


def class_names(sources: Sequence[Source]) -> dict[int, str]:
    """Class number -> name: by name as above, and from classes.json beside WebDataset tars or Parquet files."""
    stored = [_stored_names(s) for s in sources if isinstance(s, ImageSource)]
    named = {number: name for name, number in class_numbers(sources).items()}
    return {number: name for names in stored for number, name in names.items()} | named


def _stored_names(source: ImageSource) -> dict[int, str]:
    uri = storage.join(source.uri, "classes.json")
    if not storage.exists(uri):
        return {}
    try:
        found = json.loads(storage.read_bytes(uri))
        return {int(n): str(name) for n, name in (found.items() if isinstance(found, dict) else enumerate(found))}
    except (ValueError, TypeError):
        raise ValueError(f"{uri}: write a list of names, or an object from class number to name") from None


def _mapping(uri: str) -> dict[str, str]:
    """Image name without suffix -> class: two fields a line, apart by tab, comma or space; more fields are left alone.

    So are read Kaggle's LOC_val_solution.csv (its head line is skipped) and tiny-imagenet's val_annotations.txt.
    """
    lines = [re.split(r"[\t, ]+", line.strip()) for line in storage.read_lines(uri) if line.strip()]
    if any(len(fields) < 2 for fields in lines):
        raise ValueError(f"{uri}: write two fields a line, an image's name and its class")
    lines = lines[1:] if lines and lines[0][0] == "ImageId" else lines
    return {re.sub(r"\.(jpe?g|png|webp|bmp)$", "", fields[0], flags=re.I): fields[1] for fields in lines}


def _tar_samples(file: FileInfo, folder: str) -> Iterator[Document]:
    """Samples of a WebDataset tar: neighbours with the same name up to the first dot, an image and a .cls."""
    key, image, cls = "", None, -1
    for member in members_of(file, ".cls"):
        path, _, base = member.name.removeprefix("./").rpartition("/")
        this, _, field = f"{path}/{base.partition('.')[0]}", *base.partition(".")[1:]
        if this != key:
            yield from _sample(folder, key, file, image, cls)
            key, image, cls = this, None, -1
        if f".{field.lower()}" in SUFFIXES:
            image = member
        elif field == "cls" and member.content.strip().isdigit():
            cls = int(member.content)
    yield from _sample(folder, key, file, image, cls)


def _sample(folder: str, key: str, file: FileInfo, image: Member | None, cls: int) -> Iterator[Document]:
    if image is not None:
        yield Document(folder + key.lstrip("/"), file, image.start, image.size, cls)
