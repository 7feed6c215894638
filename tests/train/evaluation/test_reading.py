"""rOCR and PPL-OCR over sets of pictures, with an engine whose reading is known."""

import os

import numpy as np
import pytest
from PIL import Image

from train.evaluation.ngram import train_ngram
from train.evaluation.ocr import Reading
from train.evaluation.reading import evaluate_ppl_ocr, evaluate_rocr, pair_up, spread
from train.evaluation.results import read_result, write_result
from train.evaluation.sources import open_images
from train.evaluation.words import vocabulary

TEXTS = ["the first page has seven words here", "the second page says something else entirely"]
RUBBISH = "qx zz vv kk jj ww"


class Engine:
    """Reads the text whose number is the image's grey value; 9 reads as rubbish, 13 fails, anything else is nothing."""

    name, version = "grey", "1"
    num_read = 0

    def read(self, images):
        self.num_read += len(images)
        return [self.reading(int(image[0, 0, 0])) for image in images]

    def reading(self, value):
        if value == 13:
            return Reading("", failure="crashed")
        return Reading({**dict(enumerate(TEXTS)), 9: RUBBISH}.get(value, ""))


@pytest.fixture
def pictures(tmp_path):
    """pictures(greys, texts): a folder of pictures of these greys, k0, k1 …, with their texts beside them."""

    def make(greys, texts=TEXTS, names=None):
        folder = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for i, (grey, text) in enumerate(zip(greys, texts, strict=False)):
            name = names[i] if names else f"k{i}"
            Image.fromarray(np.full((8, 8 + i, 3), grey, np.uint8)).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(text)
        return open_images(str(folder))

    return make


def test_rocr_against_the_drawn_text_and_against_ocr_of_the_originals(tmp_path, pictures):
    made, cache = pictures([0, 9]), tmp_path / "a.jsonl"
    drawn = evaluate_rocr(made, pictures([0, 1]), Engine(), cache)
    assert drawn.word_accuracy == 0.5 and drawn.reference == "the text drawn"
    assert (drawn.engine, drawn.engine_version) == ("grey", "1")
    assert drawn.originals.word_accuracy == 1.0 and drawn.originals.rougeL == 1.0
    assert drawn.worst[0].key == "k1"
    read = evaluate_rocr(made, pictures([0, 77]), Engine(), cache, against_ocr=True)
    assert (read.word_accuracy, read.num_images, read.num_without_text) == (1.0, 1, 1)
    assert read.reference == "OCR of the originals" and read.originals.word_accuracy == 0.5


def test_a_second_run_reads_nothing_anew(tmp_path, pictures):
    engine, made, real = Engine(), pictures([0, 1]), pictures([0, 1])
    first = evaluate_rocr(made, real, engine, tmp_path / "a.jsonl")
    assert engine.num_read == 2  # equal pixels are read once
    assert evaluate_rocr(made, real, engine, tmp_path / "a.jsonl") == first and engine.num_read == 2


def test_a_name_that_is_no_text_does_not_lose_the_result(tmp_path, pictures):
    names = ["a", os.fsdecode(b"b\xe9")]
    made, real = pictures([0, 1], names=names), pictures([0, 1], names=names)
    (tmp_path / "set0" / f"{names[1]}.png").write_bytes(b"no picture")
    write_result(str(tmp_path / "rocr.json"), evaluate_rocr(made, real, Engine(), tmp_path / "a.jsonl"))
    assert made.digest != real.digest
    assert "b\\udce9.png" in next(iter(read_result(str(tmp_path / "rocr.json")).unread))


def test_unread_pictures_score_nothing_are_counted_with_their_reason_and_tried_again(tmp_path, pictures):
    made, real, engine = pictures([0, 13]), pictures([0, 1]), Engine()
    (tmp_path / "set0" / "k1.png").write_bytes(b"no picture")
    result = evaluate_rocr(made, real, engine, tmp_path / "a.jsonl")
    assert result.word_accuracy == 0.5 and result.num_unread == 1 and "k1.png" in next(iter(result.unread))
    crashed = evaluate_rocr(pictures([0, 13]), real, engine, tmp_path / "a.jsonl")
    assert crashed.word_accuracy == 0.5 and crashed.unread == {"crashed": 1}
    before = engine.num_read
    evaluate_rocr(pictures([0, 13]), real, engine, tmp_path / "a.jsonl")
    assert engine.num_read == before + 1
    with pytest.raises(ValueError, match="grey read none of 1 pictures: crashed"):
        evaluate_rocr(pictures([13]), pictures([0]), engine, tmp_path / "b.jsonl")


def test_pictures_that_are_not_of_these_originals_are_refused(tmp_path, pictures):
    cache = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match="1 reconstructions of 2 originals"):
        evaluate_rocr(pictures([0]), pictures([0, 1]), Engine(), cache)
    with pytest.raises(ValueError, match="image 1 is k1, but its original other"):
        evaluate_rocr(pictures([0, 1]), pictures([0, 1], names=["k0", "other"]), Engine(), cache)
    with pytest.raises(ValueError, match="no reference text"):
        evaluate_rocr(pictures([0, 1]), pictures([0, 1], ["", ""]), Engine(), cache)


def test_an_array_belongs_to_the_originals_by_order_and_names_by_name(tmp_path, pictures):
    np.savez(tmp_path / "made.npz", arr_0=np.stack([np.full((8, 8, 3), grey, np.uint8) for grey in (1, 0)]))
    made, real = open_images(str(tmp_path / "made.npz")), pictures([1, 0], TEXTS[::-1])
    assert evaluate_rocr(made, real, Engine(), tmp_path / "a.jsonl").word_accuracy == 1.0
    swapped = pictures([0, 1], names=["k1", "k0"])
    assert pair_up(swapped, real) == [(0, 0), (1, 1)] and swapped.keys() == ["k0", "k1"]
    assert evaluate_rocr(swapped, real, Engine(), tmp_path / "a.jsonl").word_accuracy == 1.0


def test_ppl_ocr_of_generated_images_with_real_ones_as_the_bound(tmp_path, pictures):
    model, known = train_ngram(TEXTS), vocabulary(TEXTS)
    sets = {"real": pictures([0, 1]), "generated": pictures([9, 50])}
    result = evaluate_ppl_ocr(sets, Engine(), model, known, tmp_path / "a.jsonl")
    assert result.real.perplexity < result.generated.perplexity and not result.too_repetitive
    assert (result.generated.num_scored, result.generated.num_too_short) == (1, 1)
    assert result.real.words.share == 1.0 and result.generated.words.share is None
    assert "6-gram" in result.model and result.unit == "character"


def test_text_below_the_bound_is_flagged_as_too_repetitive(tmp_path, pictures):
    model = train_ngram([TEXTS[0]] * 9 + [TEXTS[1]])
    sets = {"real": pictures([0, 1]), "generated": pictures([0, 0])}
    result = evaluate_ppl_ocr(sets, Engine(), model, vocabulary(TEXTS), tmp_path / "a.jsonl")
    assert result.too_repetitive and "too repetitive" in result.notes[0]


def test_images_are_spread_over_the_whole_set():
    assert spread(10, 4) == [0, 3, 6, 9] and spread(3, 10) == [0, 1, 2] and spread(0, 5) == []
