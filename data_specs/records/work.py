"""Documents, the units of planned work, and what a stage's result depends on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Generic, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticSerializationError
from typing_extensions import TypeVar

from data_specs.records.base import FORMAT_VERSION, Count, Md5, Record, Sha256, ShardName, Tree, first_fault
from data_specs.records.reasons import Reason, ReasonKey
from data_specs.source import AnySource, Source


class FileInfo(NamedTuple):
    """A file's address, size in bytes, and a tag that changes when its content does."""

    uri: str
    size: int
    etag: str


File = TypeVar("File", FileInfo, int, default=FileInfo)  # an int: its number among the files of a unit


class Span(NamedTuple, Generic[File]):
    """Where bytes lie: a whole file, `length` bytes of it from `start`, or row `start` of a table.

    Bytes of a packed file (.gz, .zst …) are counted in what it unpacks to.
    """

    file: File
    start: int | None = None
    length: int | None = None


class Document(NamedTuple, Generic[File]):
    """A document as listed: where it lies, its class, where its caption lies, or why it is not even read."""

    id: str
    span: Span[File]
    cls: int = 0
    caption: Span[File] | None = None
    reason: ReasonKey | None = None
    detail: str = ""


class RawDocument(NamedTuple):
    """A document as read: its bytes, or the reason for which it is not tried.

    `key` is unique in its unit; `origin` says where it stands, without this machine's folders; `info` holds what is
    known of it in terms of `SampleInfo`.
    """

    id: str
    key: str
    origin: str
    cls: int = 0
    data: bytes = b""
    reason: Reason | None = None
    detail: str = ""
    info: dict[str, str] = {}  # noqa: RUF012 (never changed)


class TarRange(Record):
    """The papers of a bulk tar that a unit takes: `count` from `first`, and all that follow where it is the `last`."""

    md5: Md5
    first: Count
    count: Count
    last: bool


class Unit(Record):
    """A piece of planned work: it makes one shard of one split. `affinity` names a file that its node should keep."""

    unit: Count
    affinity: str | None = None


class SourceUnit(Unit):
    """Documents of one source to render: listed ones, or a range of a bulk tar."""

    kind: Literal["source"] = "source"
    source: AnySource
    files: tuple[FileInfo, ...]
    documents: tuple[Document[int], ...] = ()
    tar: TarRange | None = None

    @classmethod
    def of(cls, source: Source, documents: Sequence[Document], affinity: str | None = None) -> Self:
        """Return a unit of listed documents, with the number 0."""
        spans = [span for document in documents for span in (document.span, document.caption) if span]
        files = tuple(dict.fromkeys(span.file for span in spans))
        numbers = {file: number for number, file in enumerate(files)}

        def planned(span: Span) -> Span[int]:
            return Span(numbers[span.file], span.start, span.length)

        return cls(
            unit=0,
            source=source,
            files=files,
            documents=tuple(
                Document(d.id, planned(d.span), d.cls, d.caption and planned(d.caption), d.reason, d.detail)
                for d in documents
            ),
            affinity=affinity,
        )

    def listed(self) -> list[Document]:
        """Return the documents as they were listed: the inverse of `of`."""

        def span(planned: Span[int]) -> Span:
            return Span(self.files[planned.file], planned.start, planned.length)

        return [
            Document(d.id, span(d.span), d.cls, d.caption and span(d.caption), d.reason, d.detail)
            for d in self.documents
        ]

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        spans = (span for document in self.documents for span in (document.span, document.caption) if span)
        if any(not 0 <= span.file < len(self.files) for span in spans):
            raise ValueError("a document's file is not among the unit's files")
        return self


class ShardUnit(Unit):
    """One shard of the stage's input to work on; `shard` is None where that shard has lost all its samples."""

    kind: Literal["shard"] = "shard"
    split: str
    shard: ShardName | None
    sha256: Sha256 | None
    index_sha256: Sha256 | None
    table_sha256: Sha256 | None = None


class RangeUnit(Unit):
    """`count` things from the `first` on, for instance images to draw."""

    kind: Literal["range"] = "range"
    first: Count
    count: Count


AnyUnit = SourceUnit | ShardUnit | RangeUnit
_UNIT: TypeAdapter[AnyUnit] = TypeAdapter(Annotated[AnyUnit, Field(discriminator="kind")])


def unit_line(unit: AnyUnit) -> bytes:
    """Return one line of a plan. File names may be any bytes: what UTF-8 cannot hold is written as lone surrogates."""
    try:
        return unit.model_dump_json().encode() + b"\n"
    except PydanticSerializationError:
        return json.dumps(unit.model_dump()).encode() + b"\n"


def parse_unit(line: bytes, origin: str) -> AnyUnit:
    """Read one line of a plan.

    Raises:
        ValueError: one line with `origin`, the key and what is wrong.
    """
    try:
        return _UNIT.validate_python(json.loads(line), strict=False) if b"\\ud" in line else _UNIT.validate_json(line)
    except ValidationError as error:
        raise ValueError(f"{origin}: not a valid unit ({first_fault(error)})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: not a valid unit ({error})") from None


class Identity(Record):
    """What a stage's result depends on: its section of the spec, the content of its inputs, the seed, and the versions
    that decide bytes. No path is part of it."""

    stage: str
    split: str = ""
    spec: Tree = Field({})
    inputs: dict[str, str] = Field({}, description="name of an input -> digest of its content")
    seed: int = 0
    versions: dict[str, str] = Field({})


class PlanHeader(Record):
    """First line of a file of a plan: whose it is, and how many units stand in it and in the files before it.

    `places` says where the inputs lay when it was made, which is no part of the identity.
    """

    format_version: Literal[2] = FORMAT_VERSION
    digest: Sha256
    identity: Identity
    num_units: Count
    first: Count = 0
    num_restated: Count = 0
    units_sha256: Sha256 | None = Field(None, description="of the lines below it; None in plans of before")
    places: tuple[str, ...] = ()
