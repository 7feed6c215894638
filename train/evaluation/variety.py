"""How much is said, and how much of it stands in the training text: whole passages, and single lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extractOne

from data_specs.records import TextVariety
from train.evaluation.words import letter_words

DISTANCE = 2  # edits within which a text is a copy
MIN_CHARACTERS, MIN_LINE_WORDS = 12, 2  # shorter ones stand in any text by chance


def variety(texts: Sequence[str], passages: Iterable[str]) -> TextVariety:
    """Measure what texts, as OCR read them, repeat of themselves and of the passages of the training split.

    Only letters count.
    """
    worded = [words for words in map(letter_words, texts) if words]
    whole = Counter(map(tuple, worded))
    opening, number = Counter(words[0] for words in worded).most_common(1)[0] if worded else ("", 0)
    copied, copied_lines = _copies(texts, passages)
    return TextVariety(
        distinct_pairs=len({pair for words in worded for pair in pairwise(words)}),
        duplicates=sum(count for count in whole.values() if count > 1) / max(len(worded), 1),
        opening=opening,
        opening_share=number / max(len(worded), 1),
        copied=copied,
        copied_lines=copied_lines,
    )


def _copies(texts: Sequence[str], passages: Iterable[str]) -> tuple[float | None, float | None]:
    """Return the shares of the texts, and of their lines, that are copies."""
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
