"""The published figures of the DnD-Transformer (arXiv 2410.01912), each with the conditions that it was measured under.

Ours may stand beside one only where data, image size and codes a position agree; whatever else differs is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SOURCE = "arXiv 2410.01912"
QWEN = "Qwen2-VL-72B"
INCEPTION = "inception-2015-12-05"
WHOLE_SET = 50_000  # images of ImageNet's validation split, and samples of a published gFID
LLAMAGEN = "LlamaGen-XXL (1D)"


class Conditions(NamedTuple):
    """What a figure was measured under; None or "" is not known, or does not apply.

    `data` is a data set, `size` the images' side in pixels, `depth` the number of codes a position, `reader` the
    network or engine that the figure depends on, `images` their number.
    """

    data: str
    size: int
    depth: int | None
    model: str
    guidance: float | None = None
    reader: str = ""
    images: int | None = None


class Published(NamedTuple):
    """One published figure, named as ours are, and where it stands."""

    figure: str
    value: float
    conditions: Conditions
    source: str


def differences(published: Conditions, ours: Conditions) -> list[str] | None:
    """Return in words what differs between the conditions of a published figure and of ours; [] where they agree.

    None where the two have nothing to say of each other: other data, another size or number of codes a position.
    """
    if any(getattr(published, name) != getattr(ours, name) for name in ("data", "size", "depth")):
        return None
    rest = ("model", "guidance", "reader", "images")
    pairs = ((name, getattr(ours, name), getattr(published, name)) for name in rest)
    return [f"{name} {_said(own)}, not {_said(theirs)}" for name, own, theirs in pairs if own != theirs]


def _said(value: float | str | None) -> str:
    return "unknown" if value in (None, "") else f"{value:,}" if isinstance(value, int) else str(value)


def _tokenizers() -> Iterator[Published]:
    """Table 1a: ImageNet's validation split at 256 px, f=16, V=16384; and the README of the release."""
    columns = ("rfid", "l2_loss", "codebook_share_used")
    rows: dict[tuple[int | None, str], tuple[float, ...]] = {
        (1, "RQ-VAE"): (2.98, 0.11, 1.0),
        (2, "RQ-VAE"): (0.93, 0.08, 1.0),
        (4, "RQ-VAE"): (0.60, 0.05, 1.0),
        (8, "RQ-VAE"): (0.42, 0.04, 1.0),
        (None, "SDXL's autoencoder"): (0.68, 0.05),
        (None, "SD3's autoencoder"): (0.67, 0.04),
    }
    for (depth, model), values in rows.items():
        for figure, value in zip(columns, values):
            reader = INCEPTION if figure == "rfid" else ""
            where = Conditions("ImageNet", 256, depth, model, reader=reader, images=WHOLE_SET)
            yield Published(figure, value, where, "table 1a")
    for size, value in ((256, 0.92), (512, 0.42)):
        where = Conditions("ImageNet", size, 2, "RQ-VAE", reader=INCEPTION, images=WHOLE_SET)
        yield Published("rfid", value, where, "README of the release")


def _reading() -> Iterator[Published]:
    """Table 1b: rOCR, the F-measure of ROUGE-L, on 1,000 images of each test set."""
    sets = (("Text-Image", 256), ("Text-Image", 512), ("arXiv-Image", 512))
    rows: dict[tuple[int | None, str], tuple[float, ...]] = {
        (1, "RQ-VAE"): (0.15, 0.73, 0.14),
        (1, "RQ-VAE of ImageNet"): (0.00, 0.00, 0.00),
        (2, "RQ-VAE"): (0.50, 0.81, 0.49),
        (8, "RQ-VAE"): (0.80, 0.83, 0.67),
        (None, "SDXL's autoencoder"): (0.72, 0.83, 0.66),
        (None, "SD3's autoencoder"): (0.82, 0.83, 0.74),
    }
    for (depth, model), values in rows.items():
        for (data, size), value in zip(sets, values, strict=True):
            where = Conditions(data, size, depth, model, reader=QWEN, images=1000)
            yield Published("rougeL", value, where, "table 1b")


def _generation() -> Iterator[Published]:
    """Tables 2 (what the authors ran themselves) and 3: class-conditional ImageNet at 256 px, 16x16x2 codes."""
    columns = ("gfid", "inception_score", "precision", "recall")
    table2: dict[tuple[str, float], tuple[float, ...]] = {
        (LLAMAGEN, 4.0): (7.67, 345.1, 0.89, 0.35),
        (LLAMAGEN, 2.0): (4.12, 266.9, 0.83, 0.49),
        ("DnD XXL", 4.0): (6.55, 427.7, 0.89, 0.42),
        ("DnD XXL", 2.0): (2.58, 295.6, 0.83, 0.56),
        ("DnD XXL", 1.7): (2.78, 239.2, 0.82, 0.56),
        ("DnD XXL", 1.5): (2.96, 232.5, 0.80, 0.57),
        ("DnD XXXL", 4.0): (6.48, 413.0, 0.89, 0.42),
        ("DnD XXXL", 2.0): (2.77, 319.1, 0.85, 0.54),
        ("DnD XXXL", 1.7): (2.21, 279.3, 0.83, 0.58),
        ("DnD XXXL", 1.5): (2.52, 244.2, 0.80, 0.59),
    }
    table3: dict[tuple[str, float], tuple[float, ...]] = {
        ("parallel XXL", 2.0): (6.32, 232.1, 0.79, 0.44),
        ("vertical XXL", 2.0): (3.18, 289.7, 0.83, 0.57),
    }
    for source, rows in (("table 2", table2), ("table 3", table3)):
        for (model, guidance), values in rows.items():
            depth = 1 if model == LLAMAGEN else 2
            where = Conditions("ImageNet", 256, depth, model, guidance, INCEPTION, WHOLE_SET)
            yield from (Published(figure, value, where, source) for figure, value in zip(columns, values, strict=True))


def _perplexity() -> Iterator[Published]:
    """Figure 7b: the bound of PPL-OCR on Text-Image, under Qwen2.5-72B, is the axis' mark at the line of real text."""
    where = Conditions("Text-Image", 384, 1, "real images", reader=f"{QWEN}, Qwen2.5-72B", images=250)
    yield Published("ppl_ocr", 18.0, where, "figure 7b, by eye")


PUBLISHED = [*_tokenizers(), *_reading(), *_generation(), *_perplexity()]
