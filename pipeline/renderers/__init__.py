"""Renderers: one document in, pictures with what is known of them out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_specs.records import InfoFields, Reason
from data_specs.text import one_line


class Picture(NamedTuple):
    """A rendered picture uint8 [H, W, 3] and fields of its SampleInfo; `suffix` sets it apart from others of the
    document."""

    suffix: str
    image: np.ndarray
    about: InfoFields


class NoPicture(NamedTuple):
    """A part of a document that gave no picture, and why."""

    suffix: str
    reason: Reason
    detail: str = ""


class UnreadableError(ValueError):
    """A document, or one page, that cannot be rendered: the reason that the receipt keeps, and what is known of it."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


def short(error: Exception) -> str:
    """Return an exception in one line of at most 160 characters."""
    return one_line(f"{type(error).__name__}: {error}", 160)
