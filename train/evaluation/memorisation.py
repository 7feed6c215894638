"""How much of what was generated stands in the training text: whole passages, and single lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extractOne

from train.evaluation.words import letter_words

DISTANCE = 2  # edits within which a text is a copy
MIN_CHARACTERS, MIN_LINE_WORDS = 12, 2  # shorter ones stand in any text by chance


def memorisation(texts: Sequence[str], passages: Iterable[str]) -> tuple[float | None, float | None]:
    """Compare texts, as OCR read them, with the passages of the training split; only letters count.

    Returns:
        The share of the texts of at least 12 letters and blanks within two edits of a whole passage, and that of the
        lines of at least two words that stand word for word within a passage; None where there is no such text or line.
    """
    spoken = [plain for text in texts if len(plain := _plain(text)) >= MIN_CHARACTERS]
    lines = [
        words for text in texts for line in text.splitlines() if len(words := letter_words(line)) >= MIN_LINE_WORDS
    ]
    known = [_plain(passage) for passage in passages]
    by_length: defaultdict[int, list[str]] = defaultdict(list)
    for passage in set(known):
        by_length[len(passage)].append(passage)
    found = _found_within(known, {tuple(line) for line in lines})
    copied = sum(_is_copy(text, by_length) for text in spoken) / len(spoken) if spoken else None
    return copied, sum(tuple(line) in found for line in lines) / len(lines) if lines else None


def _plain(text: str) -> str:
    return " ".join(letter_words(text))


def _is_copy(text: str, by_length: dict[int, list[str]]) -> bool:
    lengths = range(len(text) - DISTANCE, len(text) + DISTANCE + 1)
    near = (by_length[length] for length in lengths if length in by_length)
    return any(extractOne(text, of, scorer=Levenshtein.distance, score_cutoff=DISTANCE) for of in near)


def _found_within(passages: Iterable[str], wanted: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Return the wanted runs of words that stand in some passage."""
    sizes = {len(run) for run in wanted}
    found = set[tuple[str, ...]]()
    for passage in passages:
        words = passage.split()
        for size in sizes:
            runs = (tuple(words[i : i + size]) for i in range(len(words) - size + 1))
            found.update(run for run in runs if run in wanted)
    return found
