"""How many of the words that OCR reads are real: found in the vocabulary of the training text."""

import json
import re
from collections.abc import Iterable, Iterator

from data_specs.reader import ShardSet

LETTERS = re.compile(r"[^\W\d_]+")
MIN_LETTERS = 4


def letter_words(text: str) -> list[str]:
    """The runs of letters in a text, case-folded: "Don't 2x stop" -> ["don", "t", "x", "stop"]."""
    return LETTERS.findall(text.casefold())


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """Every word of at least four letters in these texts: the vocabulary that generated words are looked up in."""
    return frozenset(word for text in texts for word in letter_words(text) if len(word) >= MIN_LETTERS)


def drawn_texts(items: ShardSet) -> Iterator[str]:
    """The text drawn on each image of a shard set, "" where none was; pictures are not read."""
    for number in range(len(items.shard_uris)):
        shard = items.shard(number)
        for row in shard.field_rows("json"):
            yield json.loads(shard.map[row["offset"] : row["offset"] + row["size"]]).get("text", "")


def real_word_share(texts: Iterable[str], known: frozenset[str] | set[str]) -> dict:
    """Share of the words of at least four letters that stand in `known` (built by `vocabulary`).

    texts: one per image, as OCR read it. `share` is None where OCR read no such word at all; `num_wordless`
    counts the images without one, so that a share over few words is seen for what it is.
    Raises ValueError for an empty vocabulary."""
    if not known:
        raise ValueError("the vocabulary is empty: build it from the texts of the training split")
    num_images = num_words = num_real = num_wordless = 0
    for text in texts:
        words = [word for word in letter_words(text) if len(word) >= MIN_LETTERS]
        num_images += 1
        num_words += len(words)
        num_wordless += not words
        num_real += sum(word in known for word in words)
    share = num_real / num_words if num_words else None
    return {
        "share": share,
        "num_real": num_real,
        "num_words": num_words,
        "num_images": num_images,
        "num_wordless": num_wordless,
        "min_letters": MIN_LETTERS,
        "vocabulary_size": len(known),
    }
