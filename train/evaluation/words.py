"""Words among what OCR read: which are real (found in the training text), how many differ, what repeats."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from data_specs.reader import ShardSet
from data_specs.records import StoredInfo, WordShare

LETTERS = re.compile(r"[^\W\d_]+")
MIN_LETTERS = 4
COVERAGE = 0.98  # share of the training text's words that the vocabulary covers: its rarest words match by chance


def letter_words(text: str) -> list[str]:
    """Return the runs of letters in a text, case-folded: "Don't 2x stop" -> ["don", "t", "x", "stop"]."""
    return LETTERS.findall(text.casefold())


def long_words(text: str) -> list[str]:
    """Return the words of at least four letters: shorter ones are hit by chance."""
    return [word for word in letter_words(text) if len(word) >= MIN_LETTERS]


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """Return the commonest words of at least four letters that make up 98 % of all such words in these texts.

    Of words equally common all are in or out; `scribble_share` says how many shuffled letters still pass for words.
    """
    counts = Counter(word for text in texts for word in long_words(text))
    needed = COVERAGE * counts.total()
    covered = 0
    least = 0
    for _, count in counts.most_common():
        if covered >= needed and count < least:
            break
        covered += count
        least = count
    return frozenset(word for word, count in counts.items() if count >= least)


def drawn_texts(items: ShardSet) -> Iterator[str]:
    """Yield the text drawn on each image of a shard set, "" where none was; pictures are not read."""
    for number in range(len(items.shard_uris)):
        shard = items.shard(number)
        for row in shard.field_rows("json"):
            data = shard.map[row["offset"] : row["offset"] + row["size"]]
            yield StoredInfo.parse(data, f"{shard.uri}: sample {row['sample']}").text


def real_word_share(texts: Iterable[str], known: Collection[str]) -> WordShare:
    """Share of the words of at least four letters that stand in `known` (built by `vocabulary`).

    texts: one per image, as OCR read it. `share` is None where OCR read no such word at all; `num_wordless`
    counts the images without one, so that a share over few words is seen for what it is.

    Raises:
        ValueError: the vocabulary is empty.
    """
    counts = word_counts(texts, known)
    num_real = sum(real for real, _ in counts)
    num_words = sum(number for _, number in counts)
    return WordShare(
        share=num_real / num_words if num_words else None,
        num_real=num_real,
        num_words=num_words,
        num_images=len(counts),
        num_wordless=sum(number == 0 for _, number in counts),
        min_letters=MIN_LETTERS,
        vocabulary_size=len(known),
    )


def word_counts(texts: Iterable[str], known: Collection[str]) -> list[tuple[int, int]]:
    """Count the real words and the words of at least four letters in each text.

    Raises:
        ValueError: the vocabulary is empty.
    """
    if not known:
        raise ValueError("the vocabulary is empty: build it from the texts of the training split")
    return [(sum(word in known for word in words), len(words)) for words in map(long_words, texts)]


def distinct_words(texts: Iterable[str], known: Collection[str]) -> int:
    """Count the different real words of at least four letters."""
    return len({word for text in texts for word in letter_words(text) if word in known})


def scribble_share(texts: Iterable[str], known: Collection[str]) -> float | None:
    """Share of shuffled words that stand in the vocabulary: what scribbles of the same letters would score.

    Args:
        texts: real texts, whose words of at least four letters are shuffled letter by letter.
        known: the vocabulary.
    """
    rng = random.Random(0)
    hits = ["".join(rng.sample(word, len(word))) in known for text in texts for word in long_words(text)]
    return sum(hits) / len(hits) if hits else None
