"""Legibility: exact words in their boxes, the ratio with its interval, copies, and the figures of a whole set."""

import json

import numpy as np
import pytest
from PIL import Image

from train.evaluation.legibility import (
    TrainingText,
    evaluate_legibility,
    exact_word_share,
    ratio_of_shares,
    sweep_point,
)
from train.evaluation.ngram import train_ngram
from train.evaluation.ocr import Reading, ReadWord
from train.evaluation.sources import Picture, open_images
from train.evaluation.variety import variety
from train.evaluation.words import vocabulary

PASSAGES = ["these words stand in the training text", "other words follow after them quite often", "third passage here"]
BLANK = np.zeros((8, 8, 3), np.uint8)


def test_a_word_counts_where_it_stands_and_as_it_is_written():
    drawn = [Picture("k", BLANK, "Fox, dog", ("Fox,", "dog"), ((0, 0, 20, 10), (0, 20, 20, 30)))]

    def share(*words):
        return exact_word_share(drawn, [Reading("text", tuple(ReadWord(*word) for word in words))])

    fox, dog = ("Fox,", (1, 1, 19, 9)), ("dog", (2, 21, 18, 29))
    assert share(fox, dog) == 1.0 and share(dog, fox) == 1.0
    assert share(("fox", fox[1]), ("dog", (2, 1, 18, 9))) == 0.0  # another spelling; another line
    assert share(("Fo", fox[1]), dog) == 0.5
    assert exact_word_share(drawn, [Reading("a Fox, and dog")]) == 1.0  # an engine without boxes: by order
    assert exact_word_share([Picture("k", BLANK, "text")], [Reading("text")]) is None


def test_the_ratio_has_an_interval_over_pictures():
    known = frozenset(["real", "word"])
    made, real = ["real word junk junk"] * 50 + ["real word real word"] * 50, ["real word"] * 90 + ["real junk"] * 10
    ratio, (low, high) = ratio_of_shares(made, real, known)
    assert ratio == pytest.approx(0.75 / 0.95)
    assert low < ratio < high and high - low < 0.15
    assert ratio_of_shares(made, real, known) == (ratio, (low, high))
    assert ratio_of_shares(["junk junk"], real, known)[0] == 0.0
    assert ratio_of_shares(made, [""], known) == (None, None)


def test_copies_are_passages_within_two_edits_and_lines_word_for_word():
    texts = ["These words stand\nin the trainimg text", "third pasage hers", "something else\nentirely new", "short"]
    result = variety(texts, PASSAGES)
    assert result.copied == 2 / 3  # "short" is too short to be anybody's
    assert result.copied_lines == 1 / 5
    nothing = variety(["a"], PASSAGES)
    assert (nothing.copied, nothing.copied_lines) == (None, None)


class Engine:
    """Reads a picture's grey value as the text of that number."""

    name, version = "grey", "1"
    texts = (*PASSAGES, "these words these words these words", "xxxx yyyy zzzz vvvv wwww")

    def read(self, images):
        return [Reading(self.texts[int(image[0, 0, 0])]) for image in images]


@pytest.fixture
def pictures(tmp_path):
    def make(name, greys):
        (tmp_path / name).mkdir()
        for i, grey in enumerate(greys):
            Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(tmp_path / name / f"k{i}.png")
            (tmp_path / name / f"k{i}.txt").write_text(PASSAGES[i % 3])
        return open_images(str(tmp_path / name))

    return make


@pytest.fixture
def training():
    return TrainingText(PASSAGES, vocabulary(PASSAGES), train_ngram([*PASSAGES, *[Engine.texts[3]] * 20]))


def test_monotony_is_seen_for_what_it_is(tmp_path, pictures, training):
    sets = {"real": pictures("real", [0, 1, 2]), "generated": pictures("made", [3, 3, 3, 3])}
    sets["reconstructed"] = pictures("copies", [0, 1, 4])
    result = evaluate_legibility(sets, training, Engine(), tmp_path / "ocr.jsonl", 100)
    assert (result.engine, result.engine_version, result.num_images) == ("grey", "1", 3)
    assert result.real_words == {"real": 1.0, "reconstructed": 12 / 17, "generated": 1.0}
    assert result.ratio == 1.0 and result.distinct_words == {"real": 14, "generated": 2}
    assert (result.duplicates, result.opening, result.opening_share) == (1.0, "these", 1.0)
    assert (result.copied, result.real.copied, result.real.duplicates) == (0.0, 1.0, 0.0)
    assert result.exact_words == {"real": None, "reconstructed": None} and 0 <= result.scribbles < 0.2
    assert result.too_repetitive and "too repetitive" in result.notes[0]
    json.dumps(result.tree(), allow_nan=False)
    drawn = pictures("rubbish", [4, 0, 1])
    rubbish = sweep_point(0.7, drawn, sets["real"], training, Engine(), tmp_path / "ocr.jsonl", 3)
    assert 0 < rubbish.ratio < 1 and rubbish.duplicates == 0.0
