"""rOCR: how much of the text survives in reconstructed pictures. OCR of each, against the text drawn (or OCR of the
originals): ROUGE-1/2/L as published, character and word error rates, word accuracy, and the worst examples."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rapidfuzz.distance import LCSseq, Levenshtein

from data_specs.records import TextScores, WorstReading

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL")
INVISIBLE = ("Cc", "Cf", "Cn")  # categories of control, format and unassigned characters


def normalise(text: str) -> str:
    """Normalise a text to what every score sees.

    This is NFKC (ligatures become letters), without control and format characters, every run of white space one
    blank, none at the ends: where lines break says nothing about reading.
    """
    folded = unicodedata.normalize("NFKC", text)
    return " ".join("".join(c for c in folded if c.isspace() or unicodedata.category(c) not in INVISIBLE).split())


def score_text(reference: str, text: str) -> dict[str, float]:
    """Score how well `text`, as OCR read it, gives `reference`, as it was drawn; both are normalised first.

    ROUGE F-measures with Porter's stemmer (rouge_score); edit distances in characters and words, case and punctuation
    kept; words_right: the reference's words read exactly, in order.

    Raises:
        ValueError: the reference has no word.
    """
    wanted, got = normalise(reference), normalise(text)
    words = wanted.split()
    if not words:
        raise ValueError("a reference text without a word cannot be scored")
    rouge = _rouge().score(wanted, got)
    return {
        **{name: rouge[name].fmeasure for name in ROUGE},
        "char_errors": Levenshtein.distance(wanted, got),
        "word_errors": Levenshtein.distance(words, got.split()),
        "words_right": LCSseq.similarity(words, got.split()),
        "num_chars": len(wanted),
        "num_words": len(words),
    }


def rocr(references: Sequence[str], texts: Sequence[str], keys: Sequence[str], num_worst: int = 8) -> TextScores:
    """Score a set of `texts` as OCR read them.

    `references` are as drawn (or OCR of the originals), `keys` those of the images.

    ROUGE is the mean over images, as published; cer, wer and word_accuracy are over the whole set's characters and
    words. References without a word are counted, not scored. `worst` lists the images of lowest ROUGE-L.

    Raises:
        ValueError: nothing can be scored.
    """
    scored = [(i, score_text(r, t)) for i, (r, t) in enumerate(zip(references, texts, strict=True)) if normalise(r)]
    if not scored:
        raise ValueError("no reference text to score against: the images carry no text, or OCR read none in originals")
    total = {name: sum(score[name] for _, score in scored) for name in scored[0][1]}
    worst = sorted(scored, key=lambda pair: pair[1]["rougeL"])[:num_worst]
    return TextScores(
        **{name: total[name] / len(scored) for name in ROUGE},
        cer=total["char_errors"] / total["num_chars"],
        wer=total["word_errors"] / total["num_words"],
        word_accuracy=total["words_right"] / total["num_words"],
        num_images=len(scored),
        num_without_text=len(references) - len(scored),
        num_words=int(total["num_words"]),
        worst=tuple(
            WorstReading(key=keys[i], rougeL=score["rougeL"], reference=references[i], text=texts[i])
            for i, score in worst
        ),
    )


@lru_cache(1)
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # with nltk, which loads scikit-learn and pandas: seconds

    return RougeScorer(list(ROUGE), use_stemmer=True)
