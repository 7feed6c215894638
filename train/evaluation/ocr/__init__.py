"""OCR engines, each a class in a file of its own; a new one is one line in `ENGINES`.

`load_engine("auto")` takes the first that is installed, "tesseract" or "rapidocr" that one, "qwen2-vl:FOLDER" or a bare
FOLDER a Qwen2-VL model from there.
"""

from pathlib import Path

from train.evaluation.ocr.engine import OcrEngine, Reading, ReadWord
from train.evaluation.ocr.qwen2vl import Qwen2VL
from train.evaluation.ocr.rapidocr import RapidOcr
from train.evaluation.ocr.tesseract import Tesseract
from train.evaluation.ocr.tesserocr import Tesserocr

AUTO = "auto"
ENGINES: dict[str, type[OcrEngine]] = {
    engine.name: engine for engine in (Tesserocr, Tesseract, RapidOcr, Qwen2VL)
}  # in the order in which "auto" tries them

__all__ = ["AUTO", "ENGINES", "OcrEngine", "ReadWord", "Reading", "find_engine", "load_engine"]


def find_engine() -> str | None:
    """Name of the first engine that can read here, None where there is none."""
    return next((name for name, engine in ENGINES.items() if engine.missing() is None), None)


def load_engine(spec: str = AUTO, device: str = "cpu", num_workers: int | None = None) -> OcrEngine:
    """Load an OCR engine.

    Args:
        spec: "auto", the name of an engine, NAME:PATH, or the folder of a Qwen2-VL model.
        device: where a neural engine computes.
        num_workers: processes that read at the same time (default: one a core).

    Raises:
        ValueError: there is no such engine, or it is not installed; with the remedy.
    """
    name, _, path = spec.partition(":")
    if spec == AUTO:
        name = find_engine() or Tesseract.name
    elif name not in ENGINES:
        if not Path(spec).is_dir():
            raise ValueError(f"no OCR engine {spec!r}: give {', '.join(ENGINES)}, or the folder of a Qwen2-VL model")
        name = Qwen2VL.name
        path = spec
    if reason := ENGINES[name].missing(path):
        raise ValueError(reason)
    return ENGINES[name](path, device, num_workers)
