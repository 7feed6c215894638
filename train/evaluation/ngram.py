"""A small language model that always runs: characters, n-grams up to six, interpolated after Witten and Bell 1991."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import numpy as np

from train.evaluation.backoff import Counts, count_grams, interpolate

ORDER = 6
BITS = 8
BOUNDARY = 0
UNKNOWN = 1
FIRST_CHARACTER = 2
ALPHABET = 256 - FIRST_CHARACTER  # a character's number fits eight bits, six of them an int64
TRAINING_CHARACTERS = 20_000_000


class NGramModel:
    """Trained by `train_ngram`. `unit` says what `score` counts: perplexities are per character here."""

    unit = "character"

    def __init__(self, numbers: dict[str, int], orders: list[Counts], num_characters: int):
        self.numbers = numbers
        self.orders = orders
        self.name = f"built-in character {ORDER}-gram, Witten-Bell, {num_characters:,} characters"

    def score(self, text: str) -> tuple[float, int]:
        """Return the negative log-likelihood in nats and the characters scored of a text, white space normalised."""
        sequence = _numbered(_clean(text), self.numbers)
        probability = np.full(len(sequence) - ORDER + 1, 1.0 / (len(self.numbers) + 1))
        for order, counts in enumerate(self.orders, 1):
            grams = _grams(sequence, order)[ORDER - order :]
            probability = interpolate(counts, grams, probability, BITS)
        return float(-np.log(probability).sum()), len(probability)


def train_ngram(texts: Iterable[str]) -> NGramModel:
    """Train an n-gram model on texts, on up to twenty million characters of them in their order.

    The same texts give the same model.

    The 254 commonest characters are told apart, the rest are one. 3 MB of text take a second.

    Raises:
        ValueError: the texts hold no character.
    """
    pieces = []
    num_characters = 0
    for text in texts:
        pieces.append(_clean(text))
        num_characters += len(pieces[-1])
        if num_characters >= TRAINING_CHARACTERS:
            break
    if num_characters == 0:
        raise ValueError("the language model has no text to learn from: the training split carries none")
    numbers = _alphabet(pieces)
    sequence = np.concatenate([_numbered(piece, numbers) for piece in pieces if piece])
    return NGramModel(numbers, [_count(sequence, order) for order in range(1, ORDER + 1)], num_characters)


def _clean(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _alphabet(pieces: list[str]) -> dict[str, int]:
    """Numbers of the commonest characters, commonest first, ties by code point."""
    counts = Counter(chain.from_iterable(pieces))
    commonest = sorted(counts, key=lambda c: (-counts[c], c))[:ALPHABET]
    return {character: number for number, character in enumerate(commonest, FIRST_CHARACTER)}


def _numbered(text: str, numbers: dict[str, int]) -> np.ndarray:
    """int64 numbers of a text's characters after ORDER - 1 boundary marks, so that every character has a context."""
    marks = [BOUNDARY] * (ORDER - 1)
    return np.array(marks + [numbers.get(character, UNKNOWN) for character in text], np.int64)


def _grams(sequence: np.ndarray, order: int) -> np.ndarray:
    """Every run of `order` numbers, packed BITS bits each, the last one lowest -> [len(sequence) - order + 1]."""
    length = len(sequence) - order + 1
    packed = np.zeros(length, np.int64)
    for i in range(order):
        packed = (packed << BITS) | sequence[i : i + length]
    return packed


def _count(sequence: np.ndarray, order: int) -> Counts:
    """Count the n-grams of one order, without those that end in a boundary mark: nothing ever predicts one."""
    grams = _grams(sequence, order)
    return count_grams(grams[grams & (2**BITS - 1) != BOUNDARY], BITS)
