"""RapidOCR (PP-OCR by onnxruntime, weights in its wheel): a second reader that shares nothing with tesseract."""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np

from data_specs.sections import Limits
from train.evaluation.ocr.engine import IsolatedEngine, Reading, ReadWord, box_before, enlarge, enlargement

OPTIONS = {
    "Global.log_level": "critical",
    "Global.return_word_box": True,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
}


class RapidOcr(IsolatedEngine):
    """PP-OCR's small detector and recogniser."""

    name = "rapidocr"
    function = "train.evaluation.ocr.rapidocr:read_image"
    limits = Limits(cpu_seconds=60, memory_bytes=4 * 2**30)

    @classmethod
    def missing(cls, path: str = "") -> str | None:
        """Return why the engine cannot be used here, or None."""
        absent = [package for package in ("rapidocr", "onnxruntime") if find_spec(package) is None]
        return f"{' and '.join(absent)} not installed: pip install rapidocr onnxruntime" if absent else None

    def __init__(self, path: str = "", device: str = "cpu", num_workers: int | None = None) -> None:
        super().__init__(path, device, num_workers)
        self.version = f"{version('rapidocr')} onnxruntime {version('onnxruntime')}"


def read_image(image: np.ndarray) -> Reading:
    """Read one image uint8 [H, W, 3]; this runs in a child."""
    found = _library()(np.ascontiguousarray(enlarge(image)[..., ::-1]))  # blue, green, red
    if not found.txts:
        return Reading("")
    factor = enlargement(image)
    words = (ReadWord(text, box_before(_around(corners), factor)) for text, _, corners in chain(*found.word_results))
    return Reading("\n".join(found.txts), tuple(words))


@lru_cache(1)
def _library() -> Any:
    return importlib.import_module("rapidocr").RapidOCR(params=OPTIONS)


def _around(corners: list[list[float]]) -> tuple[float, float, float, float]:
    """Return the upright box around four corners (x, y)."""
    columns, rows = zip(*corners, strict=True)
    return min(columns), min(rows), max(columns), max(rows)
