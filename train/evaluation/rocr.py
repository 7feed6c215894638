"""rOCR: how much of the text survives in reconstructed pictures. OCR of each, against the text drawn (or OCR of the
originals): ROUGE-1/2/L as published, character and word error rates, word accuracy, and the worst examples."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein
from rouge_score.rouge_scorer import RougeScorer

from train.evaluation.ocr import OcrEngine

ROUGE = ("rouge1", "rouge2", "rougeL")
READ_AT_ONCE = 32


def normalise(text: str) -> str:
    """NFKC, every run of white space one blank, none at the ends: where lines break says nothing about reading."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def score_text(reference: str, text: str) -> dict[str, float]:
    """How well `text`, as OCR read it, gives `reference`, as it was drawn.

    ROUGE F-measures with Porter's stemmer (rouge_score, on the texts as they are); edit distances in characters and
    words, case and punctuation kept; words_right: the reference's words read exactly, in order.
    Raises ValueError for a reference without a word."""
    wanted, got = normalise(reference), normalise(text)
    words = wanted.split()
    if not words:
        raise ValueError("a reference text without a word cannot be scored")
    rouge = _rouge().score(reference, text)
    return {
        **{name: rouge[name].fmeasure for name in ROUGE},
        "char_errors": Levenshtein.distance(wanted, got),
        "word_errors": Levenshtein.distance(words, got.split()),
        "words_right": LCSseq.similarity(words, got.split()),
        "num_chars": len(wanted),
        "num_words": len(words),
    }


def rocr(references: Sequence[str], texts: Sequence[str], keys: Sequence[str], num_worst: int = 8) -> dict:
    """Scores of a set: `texts` as OCR read them, `references` as drawn (or OCR of the originals), `keys` of the images.

    ROUGE is the mean over images, as published; cer, wer and word_accuracy are over the whole set's characters and
    words. References without a word are counted, not scored. `worst` lists the images of lowest ROUGE-L.
    Raises ValueError where nothing can be scored."""
    scored = [(i, score_text(r, t)) for i, (r, t) in enumerate(zip(references, texts, strict=True)) if r.split()]
    if not scored:
        raise ValueError("no reference text to score against: the images carry no text, or OCR read none in originals")
    total = {name: sum(score[name] for _, score in scored) for name in scored[0][1]}
    worst = sorted(scored, key=lambda pair: pair[1]["rougeL"])[:num_worst]
    return {
        **{name: total[name] / len(scored) for name in ROUGE},
        "cer": total["char_errors"] / total["num_chars"],
        "wer": total["word_errors"] / total["num_words"],
        "word_accuracy": total["words_right"] / total["num_words"],
        "num_images": len(scored),
        "num_without_text": len(references) - len(scored),
        "num_words": int(total["num_words"]),
        "worst": [
            {"key": keys[i], "rougeL": score["rougeL"], "reference": references[i], "text": texts[i]}
            for i, score in worst
        ],
    }


def read_resumable(items: Iterable[tuple[str, np.ndarray]], engine: OcrEngine, record_file: Path) -> list[dict]:
    """OCR of (key, uint8 image [H, W, 3]) pairs, remembered in a JSON Lines file, so that a killed run goes on.

    A record is {key, image (SHA-256 of shape and pixels), engine, text}; one is used again only where all of key,
    image and engine agree. Returns the records in the order of `items`."""
    known = {_identity(record): record for record in _read_records(record_file)}
    record_file.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with record_file.open("a+b") as log:
        _end_line(log)
        for batch in _batches(items, READ_AT_ONCE):
            wanted = [{"key": key, "image": image_digest(image), "engine": engine.name} for key, image in batch]
            missing = [i for i, record in enumerate(wanted) if _identity(record) not in known]
            texts = engine.read([batch[i][1] for i in missing]) if missing else []
            for i, text in zip(missing, texts, strict=True):
                known[_identity(wanted[i])] = {**wanted[i], "text": text}
                log.write(json.dumps(known[_identity(wanted[i])], ensure_ascii=False).encode() + b"\n")
            log.flush()
            records += [known[_identity(record)] for record in wanted]
    return records


def image_digest(image: np.ndarray) -> str:
    """SHA-256 (hex) of a uint8 image's shape and pixels."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


@lru_cache(1)
def _rouge() -> RougeScorer:
    return RougeScorer(list(ROUGE), use_stemmer=True)


def _identity(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["key"], record["image"], record["engine"]


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file that a killed run may have left with half a last line."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"key", "image", "engine", "text"} <= record.keys():
            yield record


def _end_line(log: Any) -> None:
    """After half a line start a new one, so that the next record is not glued to it."""
    size = log.seek(0, 2)
    if size:
        log.seek(size - 1)
        if log.read(1) != b"\n":
            log.write(b"\n")


def _batches(items: Iterable[tuple[str, np.ndarray]], size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
