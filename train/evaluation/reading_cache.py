"""What OCR read, remembered in a JSON Lines file, so that a killed evaluation goes on where it was.

A record is used again only where pixels, engine and its version agree. A picture that could not be read is not
remembered: the next run tries it again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_specs import storage
from data_specs.records import OcrRecord
from data_specs.text import printable
from train.evaluation.ocr import OcrEngine, Reading, ReadWord
from train.evaluation.sources import ImageSet, Picture

READ_AT_ONCE = 32
Read = tuple[str, str, Reading]  # a picture's key, the digest of its pixels, and what was read


def cache_of(root: str) -> Path:
    """Return where readings under a root are remembered.

    It is beside the results; for a remote root, in this machine's temporary folder.
    """
    if not storage.is_remote(root):
        return Path(root, "evaluation", "ocr.jsonl")
    return Path(tempfile.gettempdir(), f"dnd-ocr-{hashlib.sha256(root.encode()).hexdigest()[:16]}.jsonl")


def read_pictures(pictures: ImageSet, indices: Sequence[int], engine: OcrEngine, cache: Path) -> list[Reading]:
    """Read the chosen pictures of a set, in their order; only what the cache lacks goes to the engine.

    A picture that cannot be opened counts as unread, with its reason.

    Raises:
        ValueError: no picture at all could be read; with the reason of the first.
    """
    known = known_readings(cache, engine)
    readings = list[Reading]()
    for first in range(0, len(indices), READ_AT_ONCE):
        opened = [_open(pictures, index) for index in indices[first : first + READ_AT_ONCE]]
        digests = [image_digest(one.image) if isinstance(one, Picture) else "" for one in opened]
        new = {d: one for d, one in zip(digests, opened, strict=True) if isinstance(one, Picture) and d not in known}
        read = dict(zip(new, engine.read([one.image for one in new.values()]), strict=True))
        remember(cache, engine, [(new[digest].key, digest, reading) for digest, reading in read.items()])
        known |= read
        readings += [
            known[digest] if isinstance(one, Picture) else one for digest, one in zip(digests, opened, strict=True)
        ]
    if readings and all(reading.failure for reading in readings):
        raise ValueError(
            f"{pictures.uri}: {engine.name} read none of {len(readings):,} pictures: {readings[0].failure}"
        )
    return readings


def missing_pictures(pictures: ImageSet, indices: Iterable[int], engine: OcrEngine, cache: Path) -> list[int]:
    """Return those of the chosen pictures that can be opened and that the cache lacks."""
    known = known_readings(cache, engine)
    opened = ((index, _open(pictures, index)) for index in indices)
    return [index for index, one in opened if isinstance(one, Picture) and image_digest(one.image) not in known]


def known_readings(cache: Path, engine: OcrEngine) -> dict[str, Reading]:
    """Read {digest of the pixels: reading} of this engine and version.

    Half a last line of a killed run is passed over.
    """
    known = {}
    for line in cache.read_bytes().splitlines() if cache.exists() else []:
        try:
            record = OcrRecord.parse(line, str(cache))
        except ValueError:
            continue
        if (record.engine, record.version) == (engine.name, engine.version):
            words = map(ReadWord, record.words, record.boxes)
            known[record.image] = Reading(record.text, tuple(words))
    return known


def remember(cache: Path, engine: OcrEngine, read: Iterable[Read]) -> None:
    """Add what was read to the cache, on a new line where a killed run left half of one."""
    lines = [_record(engine, *one).to_json() for one in read if not one[2].failure]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a+b") as log:
        size = log.seek(0, 2)
        log.seek(max(size - 1, 0))
        broken = b"\n" if size and log.read(1) != b"\n" else b""
        log.write(broken + b"".join(lines))


def image_digest(image: np.ndarray) -> str:
    """Return the SHA-256 (hex) of a uint8 image's shape and pixels."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def unread_reasons(readings: Iterable[Reading]) -> Counter[str]:
    """Count the pictures that could not be read, by reason."""
    return Counter(reading.failure for reading in readings if reading.failure)


def _open(pictures: ImageSet, index: int) -> Picture | Reading:
    try:
        return pictures[index]
    except ValueError as error:
        return Reading("", failure=printable(str(error)))


def _record(engine: OcrEngine, key: str, image: str, reading: Reading) -> OcrRecord:
    words, boxes = tuple(word.text for word in reading.words), tuple(word.box for word in reading.words)
    return OcrRecord(
        key=key, image=image, engine=engine.name, version=engine.version, text=reading.text, words=words, boxes=boxes
    )
