"""rOCR and PPL-OCR over sets of images: which are read, what they are measured against, and what the result says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_specs.records import EngineInfo, Perplexity, PplOcr, ReadText, Rocr, TextFigures
from train.evaluation.ocr import OcrEngine
from train.evaluation.perplexity import LanguageModel, ppl_ocr
from train.evaluation.reading_cache import read_pictures, unread_reasons
from train.evaluation.rocr import normalise, rocr
from train.evaluation.sources import ImageSet
from train.evaluation.words import real_word_share

REPETITIVE = "perplexity of the generated text below that of real text: too repetitive"


def evaluate_rocr(
    pictures: ImageSet,
    originals: ImageSet,
    engine: OcrEngine,
    cache: Path,
    *,
    against_ocr: bool = False,
    num_images: int = 1000,
) -> Rocr:
    """Compute the rOCR of reconstructions, spread evenly over the set, against their originals.

    The originals are read too: their own score against the text drawn, in `originals`, is the ceiling of every figure.

    Args:
        pictures: reconstructions; a picture without a name belongs to the original of the same number.
        originals: pictures with the text drawn on them, where it is known.
        engine: reads both.
        cache: JSON Lines file of what was read, from which a killed run goes on.
        against_ocr: the reference is what the engine reads in the original instead of the text drawn: what OCR itself
            gets wrong is then not held against the reconstruction.
        num_images: how many are read.

    Raises:
        ValueError: the sets are not of the same images, or there is no text to score against.
    """
    pairs = pair_up(pictures, originals)
    chosen = [pairs[index] for index in spread(len(pairs), num_images)]
    made = read_pictures(pictures, [index for index, _ in chosen], engine, cache)
    real = read_pictures(originals, [index for _, index in chosen], engine, cache)
    drawn = [_drawn(originals, index) for _, index in chosen]
    texts = [reading.text for reading in made]
    own = [reading.text for reading in real]
    names = originals.keys() or [str(index) for index in range(len(originals))]
    keys = [names[index] for _, index in chosen]
    unread = unread_reasons(made)
    return Rocr(
        **dict(rocr(own if against_ocr else drawn, texts, keys)),
        reference="OCR of the originals" if against_ocr else "the text drawn",
        originals=_ceiling(drawn, own, keys),
        engine=engine.name,
        engine_version=engine.version,
        num_offered=len(pairs),
        num_unread=unread.total(),
        unread=unread,
    )


def evaluate_ppl_ocr(
    sets: Mapping[str, ImageSet],
    engine: OcrEngine,
    model: LanguageModel,
    known: frozenset[str],
    cache: Path,
    *,
    num_images: int = 250,
) -> PplOcr:
    """Compute PPL-OCR and the share of real words for the sets "generated" and "real", which is the bound.

    A generated set below the bound says the same over and over; the result says so. `num_images` of each set, spread
    evenly, are read; known: the vocabulary of the training text, empty where there is none.
    """
    read = dict[str, ReadText]()
    for name, pictures in sets.items():
        readings = read_pictures(pictures, spread(len(pictures), num_images), engine, cache)
        texts = [reading.text for reading in readings]
        unread = unread_reasons(readings)
        read[name] = ReadText(
            **dict(ppl_ocr(texts, model)),
            words=real_word_share(texts, known) if known else None,
            texts=tuple(texts[:8]),
            num_unread=unread.total(),
            unread=unread,
        )
    repetitive = is_too_repetitive(read["real"], read["generated"])
    return PplOcr(
        **dict(engine_info(engine)),
        model=model.name,
        unit=model.unit,
        notes=(REPETITIVE,) if repetitive else (),
        real=read["real"],
        generated=read["generated"],
        too_repetitive=repetitive,
    )


def is_too_repetitive(real: Perplexity, generated: Perplexity) -> bool:
    """Return whether a perplexity lies below that of real images; False where there is none."""
    found = generated.perplexity
    bound = real.perplexity
    return found is not None and bound is not None and found < bound


def pair_up(pictures: ImageSet, originals: ImageSet) -> list[tuple[int, int]]:
    """Return each pair's (index of a reconstruction, index of its original).

    They are paired by name where both sets have names, else by order.

    Raises:
        ValueError: their numbers or names differ.
    """
    if len(pictures) != len(originals):
        raise ValueError(
            f"{len(pictures):,} reconstructions of {len(originals):,} originals: reconstruct them all first"
        )
    names = pictures.keys()
    real = originals.keys()
    if names is None or real is None:
        return [(index, index) for index in range(len(pictures))]
    numbers = {name: index for index, name in enumerate(real)}
    for index, name in enumerate(names):
        if name not in numbers:
            raise ValueError(f"image {index} is {name}, but its original {real[index]}: no original has that name")
    return [(index, numbers[name]) for index, name in enumerate(names)]


def engine_info(engine: OcrEngine) -> EngineInfo:
    """Return the engine's name and version, which stand beside every figure that OCR had a part in."""
    return EngineInfo(engine=engine.name, engine_version=engine.version)


def spread(number: int, limit: int) -> list[int]:
    """Return at most `limit` indices, spread evenly over 0 ... number - 1."""
    return [int(i) for i in np.linspace(0, number - 1, min(limit, number)).round()]


def _drawn(originals: ImageSet, index: int) -> str:
    """Return the text drawn on an original, "" where it cannot be opened."""
    try:
        return originals[index].text
    except ValueError:
        return ""


def _ceiling(drawn: Sequence[str], own: Sequence[str], keys: Sequence[str]) -> TextFigures | None:
    """Return the originals' own figures, or None where the text drawn is not known."""
    if not any(map(normalise, drawn)):
        return None
    return TextFigures(**rocr(drawn, own, keys).model_dump(include=set(TextFigures.model_fields)))
