"""Renderers: one document in, pictures with what is known of them out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from data_specs.records import Reason


class Picture(NamedTuple):
    """A rendered picture uint8 [H, W, 3] and its json; `suffix` sets it apart from others of the document."""

    suffix: str
    image: np.ndarray
    about: dict[str, Any]


class Lost(NamedTuple):
    """A page or passage of a document that gave no picture, and why."""

    suffix: str
    reason: Reason
    detail: str = ""


class Unreadable(ValueError):
    """The document as a whole cannot be rendered, and why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
