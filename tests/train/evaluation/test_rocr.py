"""rOCR: scores equal to rouge_score's and to plain dynamic programming; clean pages read well, garbage does not."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from rouge_score.rouge_scorer import RougeScorer

from data_specs.mupdf import pymupdf
from data_specs.records import WorstReading
from train.evaluation import ocr, reading_cache, rocr
from train.evaluation.ocr import Reading
from train.evaluation.sources import open_images


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, last = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y)))
    return row[-1]


PAIRS = [
    ("The running foxes jumped over\nthe lazy dogs.", "the runing foxes jumps over the lazy  dogs"),
    ("one two three", "three two one two"),
    ("nothing read here", ""),
]


@pytest.mark.parametrize(("reference", "text"), PAIRS)
def test_scores_equal_independent_ones(reference, text):
    score = rocr.score_text(reference, text)
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, text)
    for name in rocr.ROUGE:
        assert score[name] == expected[name].fmeasure
    wanted, got = " ".join(reference.split()), " ".join(text.split())
    assert score["char_errors"] == edit_distance(wanted, got)
    assert score["word_errors"] == edit_distance(wanted.split(), got.split())


def test_set_figures_are_over_the_whole_set_and_name_the_worst():
    references, texts = ["one two three four", "five", "  "], ["one two three four", "wrong", "anything"]
    result = rocr.rocr(references, texts, ["a", "b", "c"], num_worst=1)
    assert result.word_accuracy == 4 / 5 and result.wer == 1 / 5
    assert result.cer == edit_distance("five", "wrong") / (len("one two three four") + 4)
    assert result.rougeL == 0.5
    assert (result.num_images, result.num_without_text) == (2, 1)
    assert result.worst == (WorstReading(key="b", rougeL=0.0, reference="five", text="wrong"),)


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no reference text"):
        rocr.rocr(["", " "], ["a", "b"], ["1", "2"])


def test_every_score_sees_one_normalisation():
    reference = "the e\ufb03cient \ufb01nal pro\u00adof\ufffe works"
    score = rocr.score_text(reference, "the efficient final proof works")
    assert score["char_errors"] == score["word_errors"] == 0 and score["words_right"] == 5
    assert [score[name] for name in rocr.ROUGE] == [1.0, 1.0, 1.0]
    assert rocr.normalise("a\x00b \u200b c\n\td") == "ab c d"


class CountingEngine:
    """Reads the mean grey of an image, and counts how many it was given."""

    name, version = "counting", "1"

    def __init__(self):
        self.num_read = 0

    def read(self, images):
        self.num_read += len(images)
        return [Reading(f"grey {int(image.mean())}") for image in images]


def grey(path, values):
    np.savez(path, arr_0=np.stack([np.full((4, 4, 3), value, np.uint8) for value in values]))
    return open_images(str(path))


def test_reading_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path):
    file, pictures = tmp_path / "records" / "ocr.jsonl", grey(tmp_path / "a.npz", range(40))
    first, second, third = CountingEngine(), CountingEngine(), CountingEngine()
    reading_cache.read_pictures(pictures, range(40), first, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b"grey 35") + 3])
    found = reading_cache.read_pictures(pictures, range(40), second, file)
    assert (first.num_read, second.num_read) == (40, 5)
    assert [reading.text for reading in found] == [f"grey {i}" for i in range(40)]
    assert reading_cache.read_pictures(pictures, range(40), third, file) == found and third.num_read == 0


def test_another_image_or_engine_is_read_again(tmp_path):
    file = tmp_path / "ocr.jsonl"
    reading_cache.read_pictures(grey(tmp_path / "a.npz", [1, 2]), [0, 1], CountingEngine(), file)
    changed, other = CountingEngine(), CountingEngine()
    other.version = "2"
    pictures = grey(tmp_path / "b.npz", [9, 2])
    assert [r.text for r in reading_cache.read_pictures(pictures, [0, 1], changed, file)] == ["grey 9", "grey 2"]
    assert changed.num_read == 1
    reading_cache.read_pictures(pictures, [0, 1], other, file)
    assert other.num_read == 2
    assert all(json.loads(line) for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Four pages of real prose, 384 px wide and high, in type of 18 to 24 px: (text, image) pairs."""
    file = tmp_path_factory.mktemp("font") / "notos.otf"
    file.write_bytes(pymupdf.Font("notos").buffer)
    prose = (json.loads.__doc__, np.sum.__doc__, Image.open.__doc__, str.split.__doc__)
    texts = [" ".join(text.split()) for text in prose]
    return [render(text, file, 18 + 2 * i) for i, text in enumerate(texts)]


def render(text, font_file, size):
    font = ImageFont.truetype(str(font_file), size)
    image = Image.new("RGB", (384, 384), "white")
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > 364:
            lines.append(line)
            longer = word
        line = longer
    lines = lines[: 364 // int(1.3 * size)]
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((10, 10 + i * int(1.3 * size)), line, font=font, fill="black")
    return " ".join(lines), np.asarray(image)


def test_clean_pages_read_over_nine_words_in_ten_and_garbage_under_one(pages, tmp_path):
    texts, images = zip(*pages, strict=True)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in images]
    engine = ocr.load_engine()
    keys = [f"p{i}" for i in range(4)]
    for name, pictures, low, high in (("clean", images, 0.9, 1.0), ("noise", noise, 0.0, 0.1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=np.stack(pictures))
        found = reading_cache.read_pictures(
            open_images(str(tmp_path / f"{name}.npz")), range(4), engine, tmp_path / "ocr.jsonl"
        )
        result = rocr.rocr(texts, [reading.text for reading in found], keys)
        assert low <= result.word_accuracy <= high, (name, result)
    other = [reading.text for reading in engine.read(images[1:] + images[:1])]
    assert rocr.rocr(texts, other, keys).rouge2 < 0.1
