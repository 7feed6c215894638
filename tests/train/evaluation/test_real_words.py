"""The share of real words among what OCR read."""

import pytest

from train.evaluation import words


def test_only_words_of_four_letters_count_whatever_their_case_and_punctuation():
    known = words.vocabulary(["The Quick, brown fox's tail.", "Jumping"])
    assert known == {"quick", "brown", "tail", "jumping"}
    result = words.real_word_share(["quick BROWN-tail fox qvick", "", "a 1234"], known)
    assert (result["num_real"], result["num_words"]) == (3, 4)
    assert result["share"] == 0.75
    assert (result["num_images"], result["num_wordless"]) == (3, 2)


def test_nothing_read_has_no_share():
    assert words.real_word_share(["", "of it"], {"word"})["share"] is None


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match="training split"):
        words.real_word_share(["text"], frozenset())
