"""Images with classes: folder per class, a flat folder with a list of classes, WebDataset tars, Parquet files.

Classes known by name are numbered in the order of all sources' sorted names, so that train and val agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import ClassVar, Literal

from pydantic import Field

from data_specs import storage
from data_specs.records import Document, FileInfo, Reason, Span
from data_specs.source import Source
from data_specs.sources import samples
from data_specs.sources.hub import PREFIX, DataSet
from data_specs.sources.listed import ListedSource, NotTaken
from data_specs.sources.names import is_parquet, relative, stem, without_packing
from data_specs.sources.tables import list_rows, named_classes

NAMES_BYTES = 16 << 20  # of a file with the classes' names


class ImageSource(ListedSource):
    """Images with classes: folder per class, WebDataset tars, Parquet, or `datasets:NAME_OR_FOLDER`."""

    document_kind: ClassVar[Literal["image"]] = "image"
    places: ClassVar[tuple[str, ...]] = ("uri", "mapping")

    kind: Literal["images"] = Field("images", description="what sort of source it is")
    classes: Literal["labels", "none"] = Field(
        "labels", description="none: one class without a label; a .txt beside an image is its caption (img2dataset)"
    )
    mapping: str | None = Field(None, description="list of a flat folder's images: name and class, a line each")
    partition: str | None = Field(None, description="split of a `datasets` data set")
    image_key: str = Field("image", description="column of the images, in Parquet and `datasets` sets")
    class_key: str = Field("label", description="column of the classes, numbers or names")
    split: Literal["hash", "train", "val"] = Field("hash", description="by hash of the document, or all in one split")

    def prepare(self, inputs_uri: str) -> Source:
        uri = self.uri
        if uri.startswith(PREFIX):
            class_key = self.class_key if self.classes == "labels" else None
            data = DataSet(
                uri, self.partition or "train", None, self.image_key, "id", class_key, True, self.max_documents
            )
            uri = data.copy_to(inputs_uri)
        return self.model_copy(update={"uri": storage.absolute(uri, is_source=True)})

    def listing(self, classes: Mapping[str, int], not_taken: NotTaken) -> Iterator[Document]:
        listed = _mapping(self.mapping) if self.mapping else None
        named = ((relative(self.uri, file.uri), file) for file in storage.list_files(self.uri))
        for _, neighbours in groupby(named, lambda pair: _shared_part(pair[0])):
            files = dict(neighbours)
            captions = _captions(files) if self.classes == "none" else {}
            used = set(captions.values())
            for name, file in files.items():
                if without_packing(name).endswith(".tar"):
                    folder = "" if file.uri == self.uri else f"{stem(name)}/"
                    yield from samples.list_samples(file, folder, self.classes == "labels", not_taken)
                elif is_parquet(name) and stem(name) not in _tars(files):
                    labels = (self.class_key, classes) if self.classes == "labels" else None
                    yield from list_rows(self.uri, file, "id", self.image_key, labels)
                elif samples.is_image(name):
                    named_class = None if self.classes == "none" else _class_of(name, listed)
                    yield _image(name, file, named_class, classes, captions.get(name))
                elif name != "classes.json" and file not in used:
                    not_taken.add(name)

    def split_of(self, document: Document, val_share: float) -> str:
        return super().split_of(document, val_share) if self.split == "hash" else self.split

    def value_key(self) -> str:
        return self.image_key

    def row_bytes(self, value: object) -> bytes | None:
        value = value.get("bytes") if isinstance(value, dict) else value  # as `datasets` stores images
        return value if isinstance(value, bytes) else None

    def class_names(self) -> set[str]:
        if self.classes == "none":
            return set()
        if self.mapping:
            return set(_mapping(self.mapping).values())
        names = set[str]()
        for file in storage.list_files(self.uri):
            name = relative(self.uri, file.uri)
            if is_parquet(name):
                names |= named_classes(file, self.class_key)
            elif samples.is_image(name) and (cls := _class_of(name, None)):
                names.add(cls)
        return names

    def numbered_classes(self) -> dict[int, str]:
        return read_class_names(storage.join(self.uri, "classes.json"))


def read_class_names(uri: str) -> dict[int, str]:
    """Return the names of classes by number in a JSON file, a list or an object; none where there is no such file.

    Raises:
        ValueError: it is something else.
    """
    info = storage.stat(uri)
    if info is None:
        return {}
    try:
        found: object = json.loads(storage.read_bytes(uri)) if info.size <= NAMES_BYTES else None
        numbered = dict(enumerate(found)) if isinstance(found, list) else found
        if not isinstance(numbered, dict):
            raise ValueError
        return {int(number): str(name) for number, name in numbered.items()}
    except (ValueError, RecursionError):
        raise ValueError(f"{uri}: write a list of names, or an object from class number to name") from None


def _shared_part(name: str) -> str:
    """Return what a file's name has in common with those of its sample: all up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _tars(files: Mapping[str, FileInfo]) -> set[str]:
    return {stem(name) for name in files if without_packing(name).endswith(".tar")}


def _captions(files: Mapping[str, FileInfo]) -> dict[str, FileInfo]:
    """Map the images' names to their captions: files of the same name that end in .txt or .caption."""
    written = {stem(name) + name[len(stem(name)) :].lower(): file for name, file in files.items()}
    named = (
        (name, f"{stem(name)}.{suffix}")
        for name in files
        if samples.is_image(name)
        for suffix in samples.CAPTIONS[::-1]
    )
    return {name: written[caption] for name, caption in named if caption in written}


def _image(
    name: str, file: FileInfo, named_class: str | None, classes: Mapping[str, int], caption: FileInfo | None
) -> Document:
    """List an image file with its class, or, where there are none (`named_class` is None), with its caption."""
    if named_class is None:
        return Document(name, Span(file), caption=Span(caption) if caption else None)
    if named_class not in classes:
        return Document(name, Span(file), reason=Reason.NO_CLASS, detail=named_class)
    return Document(name, Span(file), classes[named_class])


def _class_of(name: str, listed: Mapping[str, str] | None) -> str:
    """Return the name of an image file's class: of its folder, or as the list says; "" for one without."""
    if listed is not None:
        return listed.get(stem(name.rpartition("/")[2]), "")
    return name.partition("/")[0] if "/" in name else ""


def _mapping(uri: str) -> dict[str, str]:
    """Image name without suffix -> class: two fields a line, apart by tab, comma or space; more fields are left alone.

    So are read Kaggle's LOC_val_solution.csv (its head line is skipped) and tiny-imagenet's val_annotations.txt.
    """
    lines = [re.split(r"[\t, ]+", line.strip()) for line in storage.read_text(uri).split("\n") if line.strip()]
    if any(len(fields) < 2 for fields in lines):
        raise ValueError(f"{uri}: write two fields a line, an image's name and its class")
    lines = lines[1:] if lines and lines[0][0] == "ImageId" else lines
    return {(stem(name) if samples.is_image(name) else name): cls for name, cls, *_ in lines}
