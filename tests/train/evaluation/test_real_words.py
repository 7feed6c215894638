"""The share of real words among what OCR read."""

import pytest

from train.evaluation import words
from train.evaluation.variety import variety


def test_only_words_of_four_letters_count_whatever_their_case_and_punctuation():
    known = words.vocabulary(["The Quick, brown fox's tail.", "Jumping"])
    assert known == {"quick", "brown", "tail", "jumping"}
    result = words.real_word_share(["quick BROWN-tail fox qvick", "", "a 1234"], known)
    assert (result.num_real, result.num_words) == (3, 4)
    assert result.share == 0.75
    assert (result.num_images, result.num_wordless) == (3, 2)


def test_nothing_read_has_no_share():
    assert words.real_word_share(["", "of it"], {"word"}).share is None


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match="training split"):
        words.real_word_share(["text"], frozenset())


def test_the_rarest_words_are_left_out_of_the_vocabulary_and_ties_stay_together():
    texts = ["common words " * 99 + "rare once"]
    assert words.vocabulary(texts) == {"common", "words"}
    assert words.vocabulary(["each word stands here once"]) == {"each", "word", "stands", "here", "once"}


def test_scribbles_of_the_same_letters_have_a_level():
    assert words.scribble_share(["aaaa bbbb"], {"aaaa", "bbbb"}) == 1.0
    assert words.scribble_share(["unmistakable legibility"], {"unmistakable", "legibility"}) == 0.0
    assert words.scribble_share(["of it"], {"word"}) is None


def test_variety_counts_what_repeats():
    known = {"quick", "brown"}
    texts = ["quick brown fox", "Quick brown fox!", "and quick", ""]
    said = variety(texts, ())
    assert (said.distinct_pairs, said.duplicates, said.opening, said.opening_share) == (3, 2 / 3, "quick", 2 / 3)
    assert words.distinct_words(texts, known) == 2
    assert variety(["", "12"], ()).duplicates == 0
