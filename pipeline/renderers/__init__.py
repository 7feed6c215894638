"""Renderers: one document in, pictures with what is known of them out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Picture(NamedTuple):
    """A rendered picture uint8 [H, W, 3] and its json; `suffix` sets it apart from others of the document."""

    suffix: str
    image: np.ndarray
    about: dict[str, Any]


class Lost(NamedTuple):
    """A part of a document that gave no picture (`kind` "filtered" or "rejected") and why."""

    suffix: str
    reason: str
    kind: str = "rejected"


class Unreadable(ValueError):
    """The document as a whole cannot be rendered; the message is the reason that the receipt keeps."""
