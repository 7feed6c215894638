"""rOCR and PPL-OCR over sets of items, with an engine whose reading is known."""

import numpy as np
import pytest

from train.evaluation.ngram import train_ngram
from train.evaluation.reading import evaluate_ppl_ocr, evaluate_rocr, spread
from train.evaluation.words import vocabulary

TEXTS = ["the first page has seven words here", "the second page says something else entirely"]


class Engine:
    """Reads the text whose number is the image's grey value; 9 reads as rubbish, anything else as nothing."""

    name = "grey 1"
    num_read = 0

    def read(self, images):
        self.num_read += len(images)
        return [{**dict(enumerate(TEXTS)), 9: "qx zz vv kk jj ww"}.get(int(image[0, 0, 0]), "") for image in images]


def items(greys, texts=TEXTS):
    return [
        {"__key__": f"k{i}", "image": np.full((8, 8, 3), grey, np.uint8), "json": {"text": texts[i]}}
        for i, grey in enumerate(greys)
    ]


def test_rocr_against_the_drawn_text_and_against_ocr_of_the_originals(tmp_path):
    drawn = evaluate_rocr(items([0, 9]), items([0, 1]), Engine(), tmp_path / "a.jsonl")
    assert drawn["word_accuracy"] == 0.5 and drawn["reference"] == "the text drawn" and drawn["engine"] == "grey 1"
    assert drawn["worst"][0]["key"] == "k1"
    read = evaluate_rocr(items([0, 9]), items([0, 77]), Engine(), tmp_path / "a.jsonl", against_ocr=True)
    assert (read["word_accuracy"], read["num_images"], read["num_without_text"]) == (1.0, 1, 1)
    assert read["reference"] == "OCR of the originals"


def test_a_second_run_reads_nothing_anew(tmp_path):
    engine = Engine()
    first = evaluate_rocr(items([0, 1]), items([0, 1]), engine, tmp_path / "a.jsonl")
    assert evaluate_rocr(items([0, 1]), items([0, 1]), engine, tmp_path / "a.jsonl") == first and engine.num_read == 2


def test_pictures_that_are_not_of_these_originals_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 reconstructions of 2 originals"):
        evaluate_rocr(items([0]), items([0, 1]), Engine(), tmp_path / "a.jsonl")
    other = items([0, 1])
    other[1]["__key__"] = "other"
    with pytest.raises(ValueError, match="image 1 is k1, but its original other"):
        evaluate_rocr(items([0, 1]), other, Engine(), tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no reference text"):
        evaluate_rocr(items([0, 1]), items([0, 1], ["", ""]), Engine(), tmp_path / "a.jsonl")


def test_ppl_ocr_of_generated_images_with_real_ones_as_the_bound(tmp_path):
    model, known = train_ngram(TEXTS), vocabulary(TEXTS)
    result = evaluate_ppl_ocr(
        {"real": items([0, 1]), "generated": items([9, 50])}, Engine(), model, known, tmp_path / "a.jsonl"
    )
    assert result["real"]["perplexity"] < result["generated"]["perplexity"]
    assert (result["generated"]["num_scored"], result["generated"]["num_too_short"]) == (1, 1)
    assert result["real"]["words"]["share"] == 1.0 and result["generated"]["words"]["share"] is None
    assert "6-gram" in result["model"] and result["unit"] == "character"


def test_images_are_spread_over_the_whole_set():
    assert spread(10, 4) == [0, 3, 6, 9] and spread(3, 10) == [0, 1, 2] and spread(0, 5) == []
