"""The published figures of the DnD-Transformer (arXiv 2410.01912), with their conditions, for the report's tables."""

from typing import NamedTuple

SOURCE = "arXiv 2410.01912"


class Published(NamedTuple):
    """One published figure. `figure` is named as ours are; `depth` is the number of codes a position."""

    table: str
    data: str
    model: str
    depth: int
    figure: str
    value: float
    conditions: str


_RFID = "ImageNet 256 validation, f=16, V=16384"
_TEXT = "512 px, Qwen2-VL reads, ROUGE-L F-measure"

PUBLISHED = [
    Published("reconstruction", "ImageNet", "RQ-VAE", 1, "rfid", 2.98, _RFID),
    Published("reconstruction", "ImageNet", "RQ-VAE", 2, "rfid", 0.93, _RFID),
    Published("reconstruction", "ImageNet", "RQ-VAE", 4, "rfid", 0.60, _RFID),
    Published("reconstruction", "ImageNet", "RQ-VAE", 8, "rfid", 0.42, _RFID),
    Published("reconstruction", "ImageNet 512", "RQ-VAE", 2, "rfid", 0.42, "ImageNet 512 validation, f=16 (README)"),
    Published("generation", "ImageNet", "DnD XXL 16x16x2", 2, "gfid", 2.58, "ImageNet 256, guidance 2"),
    Published("generation", "ImageNet", "DnD XXXL 16x16x2", 2, "gfid", 2.21, "ImageNet 256, guidance 1.7"),
    Published("reading", "Text-Image", "RQ-VAE", 1, "rougeL", 0.73, _TEXT),
    Published("reading", "Text-Image", "RQ-VAE", 2, "rougeL", 0.81, _TEXT),
    Published("reading", "Text-Image", "RQ-VAE", 8, "rougeL", 0.83, _TEXT),
    Published("reading", "arXiv-Image", "RQ-VAE", 1, "rougeL", 0.14, _TEXT),
    Published("reading", "arXiv-Image", "RQ-VAE", 2, "rougeL", 0.49, _TEXT),
    Published("reading", "arXiv-Image", "RQ-VAE", 8, "rougeL", 0.67, _TEXT),
]


def published(table: str, data: str | None = None, depth: int | None = None) -> list[Published]:
    """The published figures of a table ("reconstruction", "generation" or "reading"), of one data set or depth."""
    rows = [row for row in PUBLISHED if row.table == table]
    return [row for row in rows if data in (None, row.data) and depth in (None, row.depth)]
