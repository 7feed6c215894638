"""What a source of documents is: its keys in the spec, and how its documents are planned and read.

A kind of source is one class in one file of data_specs/sources, and one line in its `__init__`; the rest of the
product asks the class. This module imports no record, so that records can hold any source.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

if TYPE_CHECKING:
    from data_specs.records import Document, RawDocument, SourceUnit


class Source(BaseModel):
    """Base of all kinds. A mapping with `kind` is read into the class of that kind.

    Attributes:
        document_kind: what its documents are: "pdf" (the file's bytes), "text" (see `text`), "image" (encoded).
        synthetic: whether `prepare` makes the documents from nothing but this machine.
        places: its keys that say where something lies; they decide nothing, the listing does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kinds: ClassVar[dict[str, type[Source]]] = {}
    document_kind: ClassVar[Literal["pdf", "text", "image"]]
    synthetic: ClassVar[bool] = False
    places: ClassVar[tuple[str, ...]] = ()

    kind: str = Field(description="what sort of source it is")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        Source.kinds |= {kind: cls for kind in get_args(cls.model_fields["kind"].annotation)}

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, Source):
            return handler(value)
        kind = value.get("kind", cls.model_fields["kind"].default) if isinstance(value, dict) else None
        found = Source.kinds.get(str(kind))
        if found is None or not isinstance(value, dict):
            raise ValueError(f"kind is {kind!r}: give one of {', '.join(sorted(Source.kinds))}")
        unknown = [str(key) for key in value if key not in found.model_fields]
        if unknown:
            raise _refused_keys(found, unknown)
        return handler(value) if found is cls else found.model_validate(value)  # type: ignore[return-value]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the base as any one of its kinds."""
        if cls is not Source:
            return handler(core_schema)
        return {"oneOf": [handler(kind.__pydantic_core_schema__) for _, kind in sorted(Source.kinds.items())]}

    def prepare(self, inputs_uri: str) -> Source:
        """Make what must be made before listing, under `inputs_uri`, and return the source that the plan keeps.

        URIs of the returned source are absolute, since workers stand elsewhere.
        """
        return self

    @property
    def text_format(self) -> Literal["plain", "markdown", "html"]:
        """What its texts are written in."""
        return "plain"

    @property
    def address(self) -> str:
        """URI under which the documents lie; empty where they are made here."""
        return ""

    def probe_uri(self) -> str | None:
        """Return a file by which can be seen whether the source can be read; None where it has no file."""
        return None

    def class_names(self) -> set[str]:
        """Return the classes that it knows by name; all sources' names, sorted, give the classes' numbers."""
        return set()

    def numbered_classes(self) -> dict[int, str]:
        """Return the names of classes that the source brings along by number."""
        return {}

    def split_of(self, document: Document, val_share: float) -> str:
        """Return the split, "train" or "val", that a document belongs to."""
        return split_of(document.id, val_share)

    def units(
        self, documents_per_unit: int, val_share: float, classes: Mapping[str, int]
    ) -> Iterator[tuple[str, SourceUnit]]:
        """Cut the documents into (split, unit); the units' numbers are given later.

        Raises:
            ValueError: the source is empty or cannot be read.
        """
        raise NotImplementedError

    def read(self, unit: SourceUnit, max_bytes: int) -> Iterator[RawDocument]:
        """Read a unit's documents in its order, those over `max_bytes` as rejected; keys may be empty."""
        raise NotImplementedError

    def text(self, data: bytes) -> str:
        """Return the passage in the bytes of a text document.

        Raises:
            ValueError: there is none.
        """
        return data.decode()


AnySource = SerializeAsAny[Source]


def _refused_keys(source: type[Source], keys: list[str]) -> ValidationError:
    known = list(source.model_fields)
    faults = [
        InitErrorDetails(type=PydanticCustomError("unknown_key", unknown_key(key, known)), loc=(key,), input=None)
        for key in keys
    ]
    return ValidationError.from_exception_data(source.__name__, faults)


def unknown_key(key: str, known: list[str]) -> str:
    """Say that a key is not known, which ones are, and which was perhaps meant."""
    meant = difflib.get_close_matches(key, known, 1)
    return f"unknown key; known here: {', '.join(known)}{f'; did you mean {meant[0]}?' if meant else ''}"


# ---- documents by their ids -----------------------------------------------------------------------------------------
def split_of(document_id: str, val_share: float) -> str:
    """Return "val" for a share of all documents, by the SHA-256 of the id; else "train"."""
    return "val" if rank(document_id) < val_share * 2**64 else "train"


def rank(document_id: str) -> int:
    """Return a hash of 64 bits of an id or address: documents of the lowest ranks are validation."""
    return int.from_bytes(hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def key_of(document_id: str) -> str:
    """Return a document's key: arXiv's 2301.00001 becomes 2301-00001, what is not a key gets a short hash behind it."""
    if re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?", document_id):
        return document_id.replace(".", "-")
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", document_id)[:48].strip("-")
    if clean and clean == document_id:
        return clean
    return f"{clean}-{hashlib.sha256(document_id.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")
