"""Can the generated text be read, and is it worth reading? Legibility beside diversity, memorisation and temperature.

A share of real words alone rewards monotony: ten words said again and again are all real. So it stands beside the
number of distinct words, the real split's own figures, and what scribbles of the same letters would score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import LCSseq

from data_specs.reader import ShardSet
from data_specs.records import Interval, Kind, Legibility, SweepPoint
from train.evaluation.ngram import NGramModel, train_ngram
from train.evaluation.ocr import OcrEngine, Reading
from train.evaluation.perplexity import interval_95, ppl_ocr, resampled_sums
from train.evaluation.reading import REPETITIVE, engine_info, is_too_repetitive, pair_up, spread
from train.evaluation.reading_cache import read_pictures, unread_reasons
from train.evaluation.rocr import normalise
from train.evaluation.sources import ImageSet, Picture
from train.evaluation.variety import variety
from train.evaluation.words import distinct_words, drawn_texts, real_word_share, scribble_share, vocabulary, word_counts

PASSAGES = 200_000  # of the training split with which generated text is compared
KINDS: tuple[Kind, ...] = ("real", "reconstructed", "generated")


class TrainingText(NamedTuple):
    """What the training split's text gives: passages, vocabulary, a language model."""

    passages: list[str]
    known: frozenset[str]
    model: NGramModel


def training_text(images: ShardSet) -> TrainingText:
    """Return the text drawn on a training split.

    Raises:
        ValueError: it carries none.
    """
    passages = list(islice(drawn_texts(images), PASSAGES))
    return TrainingText(passages, vocabulary(passages), train_ngram(passages))


def evaluate_legibility(
    sets: Mapping[str, ImageSet], training: TrainingText, engine: OcrEngine, cache: Path, num_images: int
) -> Legibility:
    """Compute every figure of one set of generated images against the real split.

    Args:
        sets: "real" and "generated" pictures, and "reconstructed" ones of the real ones, where there are such.
        training: text of the training split.
        engine: reads all of them.
        cache: JSON Lines file of what was read.
        num_images: pictures of each set, spread evenly; as many real as generated ones.
    """
    number = min(num_images, *(len(of) for of in sets.values()))
    chosen = {kind: _choose(kind, sets, number) for kind in KINDS if kind in sets}
    readings = {kind: read_pictures(sets[kind], places, engine, cache) for kind, places in chosen.items()}
    texts = {kind: [reading.text for reading in of] for kind, of in readings.items()}
    drawn = [sets["real"][index] for index in chosen["real"]]
    scores = {kind: ppl_ocr(texts[kind], training.model) for kind in KINDS if kind != "reconstructed"}
    repetitive = is_too_repetitive(scores["real"], scores["generated"])
    unread = unread_reasons(readings["generated"])
    ratio, interval = ratio_of_shares(texts["generated"], texts["real"], training.known)
    return Legibility(
        **dict(engine_info(engine)),
        num_images=number,
        exact_words={kind: exact_word_share(drawn, readings[kind]) for kind in readings if kind != "generated"},
        real_words={kind: real_word_share(of, training.known).share for kind, of in texts.items()},
        ratio=ratio,
        ratio_interval=interval,
        distinct_words={kind: distinct_words(texts[kind], training.known) for kind in scores},
        **dict(variety(texts["generated"], training.passages)),
        real=variety(texts["real"], training.passages),
        scribbles=scribble_share((picture.text for picture in drawn), training.known),
        vocabulary_size=len(training.known),
        ppl_ocr=scores,
        too_repetitive=repetitive,
        notes=(REPETITIVE,) if repetitive else (),
        num_unread=unread.total(),
        unread=unread,
        texts=tuple(texts["generated"][:32]),
    )


def sweep_point(
    temperature: float, made: ImageSet, real: ImageSet, training: TrainingText, engine: OcrEngine, cache: Path, num: int
) -> SweepPoint:
    """Return the figures of pictures made at one temperature, `num` of them at most."""
    number = min(num, len(made), len(real))
    generated, bound = (
        [reading.text for reading in read_pictures(of, spread(len(of), number), engine, cache)] for of in (made, real)
    )
    said = variety(generated, ())
    ratio, interval = ratio_of_shares(generated, bound, training.known)
    return SweepPoint(
        temperature=temperature,
        real_words=real_word_share(generated, training.known).share,
        ratio=ratio,
        ratio_interval=interval,
        distinct_words=distinct_words(generated, training.known),
        distinct_pairs=said.distinct_pairs,
        duplicates=said.duplicates,
        num_images=number,
    )


def ratio_of_shares(
    made: Sequence[str], real: Sequence[str], known: frozenset[str]
) -> tuple[float, Interval] | tuple[None, None]:
    """Share of real words among the generated ones over that of real images: nearly independent of the engine.

    Returns:
        The ratio, and its 2.5 and 97.5 % quantiles over 1,000 draws of pictures; None without words.
    """
    counts = [np.array(word_counts(texts, known), np.float64).reshape(-1, 2) for texts in (made, real)]
    (num_made, made_words), (num_real, real_words) = (of.sum(axis=0) for of in counts)
    if not made_words or not num_real:
        return None, None
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [sums[:, 0] / sums[:, 1] for sums in (resampled_sums(of, rng) for of in counts)]
        ratios = shares[0] / shares[1]
    ratio = (num_made / made_words) / (num_real / real_words)
    return float(ratio), interval_95(ratios[np.isfinite(ratios)])


def exact_word_share(drawn: Sequence[Picture], readings: Sequence[Reading]) -> float | None:
    """Share of the drawn words that were read exactly, case and punctuation included, where they stand.

    A word stands in its drawn box, give or take half the box's height; an engine without boxes must give the words in
    their order. None where no word's box is known.
    """
    number = sum(len(picture.words) for picture in drawn)
    hits = sum(_exact_words(picture, reading) for picture, reading in zip(drawn, readings, strict=True))
    return hits / number if number else None


def _exact_words(picture: Picture, reading: Reading) -> int:
    if not reading.words:
        return int(LCSseq.similarity([*map(normalise, picture.words)], normalise(reading.text).split()))
    read = [(normalise(word.text), word.box) for word in reading.words]
    places = zip(map(normalise, picture.words), picture.boxes, strict=True)
    return sum(any(text == word and _lies_in(at, box) for text, at in read) for word, box in places)


def _lies_in(read: Sequence[float], box: Sequence[float]) -> bool:
    x = (read[0] + read[2]) / 2
    y = (read[1] + read[3]) / 2
    slack = (box[3] - box[1]) / 2
    return box[0] - slack <= x <= box[2] + slack and box[1] - slack <= y <= box[3] + slack


def _choose(kind: str, sets: Mapping[str, ImageSet], number: int) -> list[int]:
    """Places spread over a set; those of reconstructions are of the real pictures that were chosen."""
    if kind != "reconstructed":
        return spread(len(sets[kind]), number)
    places = {original: index for index, original in pair_up(sets[kind], sets["real"])}
    return [places[original] for original in spread(len(sets["real"]), number)]
