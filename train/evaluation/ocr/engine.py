"""What all OCR engines share: their interface, the preparation of small pictures, and a child process for libraries.

A library that reads in process can crash or hang; it runs in a killable child, and the picture on which it failed
counts as unread, with the reason.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from data_specs.records import Box
from data_specs.sections import Limits
from pipeline.isolate import Answer, Child

READABLE_SIDE = 512
MAX_ENLARGEMENT = 4
PADDING = 16
SECONDS_PER_IMAGE = 120


class ReadWord(NamedTuple):
    """A word as it was read, and where: (x0, y0, x1, y1) in pixels of the picture."""

    text: str
    box: Box


class Reading(NamedTuple):
    """What an engine read in a picture: lines separated by newlines, words where it gives them.

    `failure` says why a picture is unread; its text is then "".
    """

    text: str
    words: tuple[ReadWord, ...] = ()
    failure: str = ""


class OcrEngine(ABC):
    """An OCR engine; `name` and `version` stand beside every figure.

    `version` holds all that decides what is read: version of the engine, digest of its model, settings.
    """

    name: ClassVar[str]
    on_device: ClassVar[bool] = False  # whether it computes on the device that it is given
    version: str

    @property
    def spec(self) -> str:
        """What load_engine makes the same engine of, on another machine."""
        return self.name

    @classmethod
    @abstractmethod
    def missing(cls, path: str = "") -> str | None:
        """Return why the engine cannot be used here, with the remedy, or None where it can."""

    @abstractmethod
    def __init__(self, path: str = "", device: str = "cpu", num_workers: int | None = None) -> None: ...

    @abstractmethod
    def read(self, images: Sequence[np.ndarray]) -> list[Reading]:
        """Read images uint8 [H, W, 3] of any size, one reading each; no reading depends on the other images."""


class IsolatedEngine(OcrEngine):
    """An engine whose library runs in killable children, one a worker."""

    function: ClassVar[str]  # "module:name" of image -> Reading, called in the child
    limits: ClassVar[Limits] = Limits(cpu_seconds=SECONDS_PER_IMAGE / 10)

    def __init__(self, path: str = "", device: str = "cpu", num_workers: int | None = None) -> None:
        # a child dies with the thread that started it, so the threads live as long as the engine
        self.children = [
            (ThreadPoolExecutor(1), Child[Reading](self.function, self.limits))
            for _ in range(num_workers or num_cores())
        ]

    def read(self, images: Sequence[np.ndarray]) -> list[Reading]:
        """Read images uint8 [H, W, 3], dealt in turn to the children."""
        running = [thread.submit(child.call, image) for image, (thread, child) in zip(images, cycle(self.children))]
        return [_reading(answer.result()) for answer in running]


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def enlarge(image: np.ndarray) -> np.ndarray:
    """Make a small picture readable.

    It is enlarged by a whole factor (at most 4) until its short side has 512 pixels, and framed by 16 pixels of
    its border's median colour.

    Measured on clean prose at 384 px, this takes word accuracy from .26 to .90 for 8 px type, from .78 to .96 for
    10 px, and leaves 14 px and more as it is.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        uint8 [H', W', 3].
    """
    height, width = image.shape[:2]
    factor = enlargement(image)
    large = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    frame = Image.new("RGB", (large.width + 2 * PADDING, large.height + 2 * PADDING), (red, green, blue))
    frame.paste(large, (PADDING, PADDING))
    return np.asarray(frame)


def enlargement(image: np.ndarray) -> int:
    """Return the factor by which `enlarge` enlarges a picture."""
    return min(MAX_ENLARGEMENT, max(1, -(-READABLE_SIDE // min(image.shape[:2]))))


def box_before(box: Sequence[float], factor: int) -> Box:
    """Convert a box on an enlarged picture to pixels of the picture that it was made from."""
    x0, y0, x1, y1 = ((edge - PADDING) / factor for edge in box)
    return x0, y0, x1, y1


def reading_of_tsv(table: str, factor: int) -> Reading:
    """Return the reading in tesseract's TSV.

    Its columns: level, page, block, paragraph, line, word, left, top, width, height, confidence, text.
    """
    lines: dict[tuple[str, ...], list[str]] = {}
    words: list[ReadWord] = []
    for row in table.splitlines():
        fields = row.split("\t")
        if fields[0] == "5" and fields[11].strip():
            left, top, width, height = map(float, fields[6:10])
            lines.setdefault(tuple(fields[1:5]), []).append(fields[11].strip())
            words.append(ReadWord(fields[11].strip(), box_before((left, top, left + width, top + height), factor)))
    return Reading("\n".join(" ".join(line) for line in lines.values()), tuple(words))


def _reading(answer: Answer[Reading]) -> Reading:
    """Return a child's answer as a reading; where it failed, the failure is the answer's detail.

    The reason alone is not enough: the list of reasons is meant for documents.
    """
    failure = answer.detail or str(answer.reason)
    return Reading("", failure=failure) if answer.value is None else Reading(*answer.value)
