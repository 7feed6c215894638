"""Records: everything that is written to disk or handed from one floor to another, as typed, frozen models.

A file is read through its model on every path, also by `dnd verify` and `dnd status`: what does not fit is one line
that names the file. Names of files inside records match the pattern of what they name, so that a record from somebody
else can point at nothing outside its own shard set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from data_specs.source import AnySource, Source

FORMAT_VERSION: Literal[2] = 2
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
ShardName = Annotated[str, Field(pattern=r"^[0-9]{6,12}-[0-9a-f]{8}\.tar$")]
PartName = Annotated[str, Field(pattern=r"^manifest-[0-9]{4,8}-[0-9a-f]{8}\.json$")]


class Record(BaseModel):
    """What all records have in common: unknown keys, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def parse(cls, data: bytes | str, origin: str) -> Self:
        """Reads one record from JSON.

        Raises:
            ValueError: one line with `origin`, the key and what is wrong.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise ValueError(f"{origin}: not a valid {cls.__name__.lower()} ({_first_fault(error)})") from None

    def to_json(self) -> bytes:
        """One line of canonical JSON: every key, sorted; equal records give equal bytes."""
        tree = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def _first_fault(error: ValidationError) -> str:
    """What is wrong with the first key that is not right."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"])) or "the file"
    message = " ".join(fault["msg"].removeprefix("Value error, ").split())[:200]
    return f"{where}: {message}"


# ---- reasons -------------------------------------------------------------------------------------------------------
class Reason(StrEnum):
    """Why something that was offered is not in a set: a closed list. Details stand in the receipt, never here."""

    # taken out by a filter of the spec
    BLANK = "blank"
    TOO_LITTLE_INK = "too little ink"
    TOO_FEW_WORDS = "too few words"
    NEAR_DUPLICATE = "near duplicate"
    SCANNED = "scanned page"
    SCRIPT = "mostly in another script"
    UNTRUSTED_WORDS = "words that cannot be trusted"
    PAGE_TOO_SMALL = "page smaller than a crop"
    NO_TEXT = "no text"
    NO_FONT = "no font has all its characters"
    DOES_NOT_FIT = "does not fit the picture"
    LICENCE = "licence not on the allow list"
    CATEGORY = "category not wanted"
    NO_METADATA = "no metadata"
    WHERE = "does not match tokenize.where"
    REMOVED = "removed"
    # could not be used
    NOT_A_PDF = "not a PDF"
    ENCRYPTED = "encrypted"
    UNREADABLE = "cannot be opened"
    NO_PAGE = "no page"
    PAGE_FAILED = "page cannot be rendered"
    BLANK_AFTER_REPAIR = "blank after a repair"
    TOO_LARGE = "larger than render.limits"
    NOT_AN_IMAGE = "not an image"
    FORMAT_NOT_ALLOWED = "image format not on the allow list"
    MODE_NOT_ALLOWED = "pixels that eight bits cannot hold"
    BROKEN_ROW = "broken line or row"
    NO_CLASS = "class not known"
    NOT_A_FILE = "not a plain file in its tar"
    SECOND_OF_KEY = "second sample of one key"
    NAME_NOT_USABLE = "name that cannot be a key"
    TYPE_NOT_READ = "type of file not read"
    TAR_ENDS_EARLY = "tar ends before its manifest"
    # depends on the machine
    CPU_TIME = "over the limit of CPU time"
    WALL_TIME = "over the limit of time"
    MEMORY = "over the limit of memory"
    CRASH = "renderer crashed"

    @property
    def kind(self) -> Literal["filtered", "rejected"]:
        """Whether a filter took it, or it could not be used."""
        return "filtered" if self in _FILTERED else "rejected"

    @property
    def environmental(self) -> bool:
        """Whether it depends on the machine: equality of manifests is promised where these agree."""
        return self in _ENVIRONMENTAL


_ORDER = list(Reason)
_FILTERED = frozenset(_ORDER[: _ORDER.index(Reason.NOT_A_PDF)])
_ENVIRONMENTAL = frozenset(_ORDER[_ORDER.index(Reason.CPU_TIME) :])
ReasonKey = Annotated[Reason, Field(strict=False)]  # JSON has no enums


# ---- documents and units -------------------------------------------------------------------------------------------
class FileInfo(NamedTuple):
    """A file's address, size in bytes, and a tag that changes when its content does."""

    uri: str
    size: int
    etag: str


class Span(NamedTuple):
    """Where bytes lie: a whole file, `length` bytes of it from `start`, or row `start` of a table.

    Bytes of a packed file (.gz, .zst …) are counted in what it unpacks to.
    """

    file: FileInfo
    start: int | None = None
    length: int | None = None


class Document(NamedTuple):
    """A document as listed: where it lies, its class, where its caption lies, or why it is not even read."""

    id: str
    span: Span
    cls: int = 0
    caption: Span | None = None
    reason: Reason | None = None
    detail: str = ""


class PlannedSpan(NamedTuple):
    """A span whose file is a number among the unit's files."""

    file: int
    start: int | None
    length: int | None


class PlannedDocument(NamedTuple):
    """A document of a unit; see `Document`."""

    id: str
    span: PlannedSpan
    cls: int = 0
    caption: PlannedSpan | None = None
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
    documents: tuple[PlannedDocument, ...] = ()
    tar: TarRange | None = None

    @classmethod
    def of(cls, source: Source, documents: Sequence[Document], affinity: str | None = None) -> Self:
        """A unit of listed documents, with the number 0."""
        spans = [span for document in documents for span in (document.span, document.caption) if span]
        files = tuple(dict.fromkeys(span.file for span in spans))
        numbers = {file: number for number, file in enumerate(files)}

        def planned(span: Span) -> PlannedSpan:
            return PlannedSpan(numbers[span.file], span.start, span.length)

        return cls(
            unit=0,
            source=source,
            files=files,
            documents=tuple(
                PlannedDocument(d.id, planned(d.span), d.cls, d.caption and planned(d.caption), d.reason, d.detail)
                for d in documents
            ),
            affinity=affinity,
        )

    def listed(self) -> list[Document]:
        """The documents as they were listed: the inverse of `of`."""

        def span(planned: PlannedSpan) -> Span:
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


class RangeUnit(Unit):
    """`count` things from the `first` on, for instance images to draw."""

    kind: Literal["range"] = "range"
    first: Count
    count: Count


AnyUnit = SourceUnit | ShardUnit | RangeUnit
_UNIT: TypeAdapter[AnyUnit] = TypeAdapter(Annotated[AnyUnit, Field(discriminator="kind")])


def unit_line(unit: AnyUnit) -> bytes:
    """One line of a plan. File names may be any bytes: what UTF-8 cannot hold is written as lone surrogates."""
    try:
        return unit.model_dump_json().encode() + b"\n"
    except PydanticSerializationError:
        return json.dumps(unit.model_dump()).encode() + b"\n"


def parse_unit(line: bytes, origin: str) -> AnyUnit:
    """Reads one line of a plan.

    Raises:
        ValueError: one line with `origin`, the key and what is wrong.
    """
    try:
        return _UNIT.validate_python(json.loads(line), strict=False) if b"\\ud" in line else _UNIT.validate_json(line)
    except ValidationError as error:
        raise ValueError(f"{origin}: not a valid unit ({_first_fault(error)})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: not a valid unit ({error})") from None


# ---- what a stage depends on ---------------------------------------------------------------------------------------
class Identity(Record):
    """What a stage's result depends on: its part of the spec, the content of its inputs, the seed, and the versions
    that decide bytes. No path is part of it."""

    stage: str
    split: str = ""
    spec: dict[str, JsonValue] = {}
    inputs: dict[str, str] = Field({}, description="name of an input -> digest of its content")
    seed: int = 0
    versions: dict[str, str] = {}


class PlanHeader(Record):
    """First line of a file of a plan: whose it is, and how many units stand in it and in the files before it."""

    format_version: Literal[2] = FORMAT_VERSION
    digest: Sha256
    identity: Identity
    num_units: Count
    first: Count = 0
    num_restated: Count = 0


# ---- outcomes and receipts -----------------------------------------------------------------------------------------
class SampleFacts(NamedTuple):
    """What is known of a picture beyond its files, for the table: share of ink, main script, perceptual hash."""

    ink: float = 0.0
    script: str = ""
    hash: int = 0


class Sample(NamedTuple):
    """One sample of a shard: `fields` maps an extension (png, cls, json, codes.npy) to its bytes; KEY has no dot."""

    key: str
    fields: dict[str, bytes]
    facts: SampleFacts = SampleFacts()


class Dropped(NamedTuple):
    """Something offered that was not written, why, and what is known beyond the reason (exception text, numbers)."""

    key: str
    source: str
    reason: Reason
    detail: str = ""


class Reject(Record):
    """A rejected document or picture, as a receipt keeps it."""

    key: str
    source: str
    reason: ReasonKey
    detail: str = ""


class ShardFile(Record):
    """A shard of a set: file name, size and digests of the tar, digest of its index and of its table."""

    name: ShardName
    bytes: Count
    md5: Md5
    sha256: Sha256
    index_sha256: Sha256
    table_sha256: Sha256


class InputRead(Record):
    """What a unit read: where it lay, how many bytes, and their digest."""

    uri: str = ""
    bytes: Count = 0
    sha256: Sha256


Outcome = Sample | Dropped | InputRead  # what a stage's work on a unit yields


class Ran(Record):
    """Where and when a unit was made: the only part of a receipt that differs from run to run."""

    host: str
    seconds: float
    ended: float


class Receipt(Record):
    """That a unit is done, and what became of all that it was offered."""

    format_version: Literal[2] = FORMAT_VERSION
    digest: Sha256
    unit: Count
    offered: Count
    written: Count
    filtered: dict[ReasonKey, Count] = {}
    rejected: tuple[Reject, ...] = ()
    shard: ShardFile | None = None
    replaces: tuple[ShardName, ...] = ()
    read: tuple[InputRead, ...] = ()
    ran: Ran

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.offered != self.written + sum(self.filtered.values()) + len(self.rejected):
            raise ValueError("offered is not written + filtered + rejected")
        if (self.shard is None) != (self.written == 0):
            raise ValueError("number of samples and shard do not fit together")
        names = (*self.replaces, *([self.shard.name] if self.shard else []))
        if any(not name.startswith(f"{self.unit:06d}-") for name in names):
            raise ValueError("names a shard of another unit")
        return self


class Failure(Record):
    """A unit that failed three times, and why."""

    unit: Count
    reason: str
    host: str
    ended: float


# ---- manifests -----------------------------------------------------------------------------------------------------
class Totals(Record):
    """The account of a shard set: offered = written + filtered + rejected."""

    units: Count = 0
    offered: Count = 0
    written: Count = 0
    filtered: Count = 0
    rejected: Count = 0
    bytes: Count = 0


class ShardEntry(Record):
    """A shard in a manifest, under wids' names; `replaces` keeps the names of what it was made anew from."""

    url: ShardName
    nsamples: Count
    filesize: Count
    md5sum: Md5
    sha256: Sha256
    index_sha256: Sha256
    replaces: tuple[ShardName, ...] = ()


class PartEntry(Record):
    """A part of a large manifest: a wids index of its own."""

    url: PartName
    nshards: Count
    nsamples: Count
    sha256: Sha256


class ManifestPart(Record):
    """A wids index: the shards of a part of a large manifest."""

    kind: Literal["wids-shard-index-v1"] = Field("wids-shard-index-v1", alias="__kind__")
    wids_version: Literal[1] = 1
    name: str
    shardlist: tuple[ShardEntry, ...] = ()


class Manifest(ManifestPart):
    """A shard set's receipts merged; reads as a wids index. Large ones name `parts` in the place of shards."""

    format_version: Literal[2] = FORMAT_VERSION
    digest: Sha256
    complete: bool
    totals: Totals
    filtered: dict[ReasonKey, Count] = {}
    rejects: dict[ReasonKey, Count] = {}
    parts: tuple[PartEntry, ...] = ()
    emptied: tuple[ShardName, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        held = sum(entry.nsamples for entry in self.shardlist) + sum(part.nsamples for part in self.parts)
        if held != self.totals.written:
            raise ValueError("its shards do not hold as many samples as its totals say")
        return self


class JobState(Record):
    """What a running job says of itself: SET/progress.json. Times are in seconds."""

    digest: Sha256
    host: str
    written: float
    ended: bool
    units: Count
    done: Count
    failed: Count
    workers: Count
    running: Count
    longest: tuple[tuple[int, int, str], ...] = Field((), description="unit, seconds, node: the longest first")
    units_per_minute: float
    seconds_left: int | None = None
    totals: Totals
    filtered: dict[ReasonKey, Count] = {}
    rejects: dict[ReasonKey, Count] = {}


class LeaseHolder(Record):
    """FOLDER/lease/NNNNNN.json: who writes there, and when it last said so. Times are in seconds since 1970."""

    host: str
    pid: Count
    pid_space: str = Field(description="the kernel's number of the namespace that `pid` counts in")
    command: str
    since: float
    beat: float


class Removed(Record):
    """What must not be in ROOT/images: documents by id, samples as SPLIT/UNIT/KEY."""

    ids: tuple[str, ...] = ()
    samples: tuple[Annotated[str, Field(pattern=r"^(train|val)/\d+/[A-Za-z0-9_-]+$")], ...] = ()


# ---- samples -------------------------------------------------------------------------------------------------------
Box = tuple[float, float, float, float]


class SampleInfo(Record):
    """The json of an image sample: every key in every sample, always of one type, never null.

    `words`, `boxes` (x0, y0, x1, y1 in stored pixels) and `clipped` (cut by the picture's edge) are parallel; `text` is
    what can be read, without clipped words. `box` is the crop in pixels of the page. Words are not `trusted` where a
    page's file does not say what its letters are, or runs from top to bottom.
    """

    id: str
    source: str = ""
    licence: str = ""
    title: str = ""
    authors: str = ""
    categories: str = ""
    url: str = ""
    engine: str = ""
    page: int = -1
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    text: str = ""
    words: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    clipped: tuple[bool, ...] = ()
    trusted: bool = True

    @model_validator(mode="after")
    def _are_parallel(self) -> Self:
        if not len(self.words) == len(self.boxes) == len(self.clipped):
            raise ValueError("words, boxes and clipped differ in length")
        return self


Item = dict[str, Any]  # what the reader gives: __key__ str, image or codes array, cls int, json dict


# ---- evaluation ----------------------------------------------------------------------------------------------------
class OcrRecord(Record):
    """What an engine read in a picture, a line of ROOT/evaluation/ocr.jsonl; `image` is the digest of its pixels."""

    key: str
    image: Sha256
    engine: str
    version: str
    text: str
    words: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


# ---- code ----------------------------------------------------------------------------------------------------------
class CodeEntry(Record):
    """What code something was done with: a job that was `submitted`, or a folder of the root whose making `began`.

    `patch` names the file under the root that holds what was not committed, where that is not too much to keep; `image`
    is a container's reference.
    """

    at: str
    submitted: str = ""
    began: str = ""
    on: str = ""
    job: str = ""
    image: str = ""
    commit: str | None = None
    dirty: bool = False
    patch: Annotated[str, Field(pattern=r"^code-[0-9a-f]{8}\.patch$")] | None = None
    python: str
    packages: dict[str, str]


class CodeHistory(Record):
    """ROOT/code.json: entries in the order of their time."""

    entries: tuple[CodeEntry, ...] = ()


# ---- training ------------------------------------------------------------------------------------------------------
class CheckpointFile(Record):
    """Size and digest of a file of a checkpoint."""

    bytes: Count
    sha256: Sha256


class CheckpointState(Record):
    """STEP/state.json: where a training is, and what proves that its files are whole."""

    format_version: Literal[2] = FORMAT_VERSION
    step: Count
    position: Count = Field(description="samples consumed")
    world: int = Field(ge=1, description="ranks that wrote it")
    guard: dict[str, JsonValue] = {}
    task: dict[str, JsonValue] = Field({}, description="what the trained task keeps beside its tensors")
    spec: dict[str, JsonValue] = {}
    files: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+\.safetensors$")], CheckpointFile]


class ReadingOrder(Record):
    """transformer/order.json: in windows of how many shards a training reads its sets (None: all), since its start."""

    shuffle_window: Annotated[int, Field(ge=1)] | None


class Finished(Record):
    """FOLDER/done: the step of a finished training's weights, what proves their files, and how they validate.

    `weights` and `ema` are to be small: bits a code of the transformer, mean squared error of the tokenizer.
    """

    step: Count
    files: dict[Annotated[str, Field(pattern=r"^[a-z]+\.safetensors$")], CheckpointFile] = {}
    weights: float = 0.0
    ema: float | None = None
