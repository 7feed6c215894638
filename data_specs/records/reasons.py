"""Why something that was offered is not in a set."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field


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
