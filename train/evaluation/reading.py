"""rOCR and PPL-OCR over shard sets: which images are read, what they are measured against, and what the result says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.evaluation.ocr import OcrEngine
from train.evaluation.perplexity import LanguageModel, ppl_ocr
from train.evaluation.records import read_resumable
from train.evaluation.rocr import rocr
from train.evaluation.words import real_word_share

Item = dict[str, Any]


def evaluate_rocr(
    pictures: Sequence[Item],
    originals: Sequence[Item],
    engine: OcrEngine,
    records: Path,
    *,
    against_ocr: bool = False,
    num_images: int = 1000,
) -> dict[str, Any]:
    """rOCR of `num_images` reconstructions, spread evenly over the set, against their originals.

    pictures, originals: items {__key__, image uint8 [H, W, 3], json} of the same keys in the same order. The
    reference is the text drawn (`json["text"]`) or, `against_ocr`, what the engine reads in the original: then what
    OCR itself gets wrong is not held against the reconstruction. records: a JSON Lines file of what was read, from
    which a killed run goes on. Raises ValueError where the keys differ or no original carries text."""
    if len(pictures) != len(originals):
        raise ValueError(
            f"{len(pictures):,} reconstructions of {len(originals):,} originals: reconstruct them all first"
        )
    chosen = spread(len(pictures), num_images)
    for i in chosen:
        if pictures[i]["__key__"] != originals[i]["__key__"]:
            raise ValueError(f"image {i} is {pictures[i]['__key__']}, but its original {originals[i]['__key__']}")
    texts = _read(pictures, chosen, engine, records, "reconstructed")
    if against_ocr:
        references = _read(originals, chosen, engine, records, "real")
    else:
        references = [originals[i]["json"].get("text", "") for i in chosen]
    keys = [pictures[i]["__key__"] for i in chosen]
    kind = "OCR of the originals" if against_ocr else "the text drawn"
    return {**rocr(references, texts, keys), "reference": kind, "engine": engine.name, "num_offered": len(pictures)}


def evaluate_ppl_ocr(
    sets: Mapping[str, Sequence[Item]],
    engine: OcrEngine,
    model: LanguageModel,
    known: frozenset[str],
    records: Path,
    *,
    num_images: int = 250,
) -> dict[str, Any]:
    """PPL-OCR and the share of real words for each named set ("real" is the bound of "generated").

    `num_images` of each set, spread evenly, are read; known: the vocabulary of the training text."""
    result: dict[str, Any] = {"engine": engine.name, "model": model.name, "unit": model.unit}
    for name, items in sets.items():
        texts = _read(items, spread(len(items), num_images), engine, records, name)
        result[name] = {**ppl_ocr(texts, model), "words": real_word_share(texts, known), "texts": texts[:8]}
    return result


def spread(number: int, limit: int) -> list[int]:
    """At most `limit` indices, spread evenly over 0 ... number - 1."""
    return [int(i) for i in np.linspace(0, number - 1, min(limit, number)).round()]


def _read(items: Sequence[Item], chosen: list[int], engine: OcrEngine, records: Path, kind: str) -> list[str]:
    """The texts of the chosen images, remembered as "kind/key"."""
    named = ((f"{kind}/{items[i]['__key__']}", items[i]["image"]) for i in chosen)
    return [record["text"] for record in read_resumable(named, engine, records)]
