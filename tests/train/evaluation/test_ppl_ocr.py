"""PPL-OCR: the built-in model is a distribution and orders corruptions; a transformers model equals its own loss."""

import inspect
import itertools
import json
import math
import random
import string

import numpy as np
import pytest

from train.evaluation.ngram import train_ngram
from train.evaluation.perplexity import TransformersModel, ppl_ocr
from train.evaluation.vision_ops import import_torchvision


def stdlib_prose():
    """Passages of the documentation strings that every Python has, over 30 words each."""
    import argparse
    import asyncio
    import decimal
    import email.message
    import logging
    import pathlib
    import statistics
    import subprocess
    import typing
    import unittest.mock

    modules = (
        argparse,
        asyncio,
        decimal,
        email.message,
        logging,
        pathlib,
        statistics,
        subprocess,
        typing,
        unittest.mock,
    )
    objects = {id(o): o for m in modules for o in [*vars(m).values()] if inspect.isclass(o) or inspect.isroutine(o)}
    members = {id(o): o for c in objects.values() if inspect.isclass(c) for o in vars(c).values()}
    docs = [inspect.cleandoc(o.__doc__) for o in [*objects.values(), *members.values()] if isinstance(o.__doc__, str)]
    return sorted({doc for doc in docs if len(doc.split()) > 30})


def replace(text, share, rng):
    return "".join(rng.choice(string.ascii_lowercase) if rng.random() < share else c for c in text)


def shuffled(text, rng):
    characters = list(text)
    rng.shuffle(characters)
    return "".join(characters)


def assert_orders_corruptions(train, val):
    model, rng = train_ngram(train), random.Random(0)
    versions = [val, *([replace(t, share, rng) for t in val] for share in (0.1, 0.3)), [shuffled(t, rng) for t in val]]
    results = [ppl_ocr(texts, model) for texts in versions]
    perplexities = [result.perplexity for result in results]
    assert perplexities == sorted(perplexities)
    for better, worse in itertools.pairwise(results):
        assert better.interval_95[1] < worse.interval_95[0]
    return perplexities


def test_corruptions_of_docstrings_are_ordered_beyond_their_intervals():
    prose = stdlib_prose()
    random.Random(1).shuffle(prose)
    assert_orders_corruptions(prose[40:], prose[:40])


def test_corruptions_of_books_are_ordered_beyond_their_intervals(shared):
    with (shared / "data" / "text" / "passages.jsonl").open() as file:
        prose = [json.loads(line)["text"] for line in file]
    perplexities = assert_orders_corruptions(prose[::3], prose[1::80])
    assert perplexities[0] < 8


def test_the_built_in_model_is_a_distribution_whatever_came_before():
    model = train_ngram(["abra cadabra", "a b c"])
    for prefix in ("abra c", "a", "zzz", "cad"):
        continuations = [prefix + c for c in model.numbers] + [prefix + "\N{SNOWMAN}"]
        start = model.score(prefix)[0]
        # one blank at the end is white space that is normalised away: its share is what the others leave
        shares = [math.exp(start - model.score(t)[0]) for t in continuations if not t.endswith(" ")]
        blank = math.exp(model.score(prefix + " a")[0] * -1 + start) / conditional(model, prefix + " ", "a")
        assert sum(shares) + blank == pytest.approx(1.0)


def conditional(model, context, character):
    """P(character | context) by the definition, from counts by brute force over the same training text."""
    pieces = ["abra cadabra", "a b c"]
    probability = 1 / (len(model.numbers) + 1)
    for order in range(1, 7):
        before = ("\0" * 5 + context)[len(context) + 5 - (order - 1) :]
        grams = [p[i : i + order] for p in ("\0" * 5 + t for t in pieces) for i in range(len(p) - order + 1)]
        followers = [g[-1] for g in grams if g[:-1] == before and g[-1] != "\0"]
        if followers:
            mixed = followers.count(character) + len(set(followers)) * probability
            probability = mixed / (len(followers) + len(set(followers)))
    return probability


def test_witten_bell_equals_its_definition():
    model = train_ngram(["abra cadabra", "a b c"])
    text = "a cadabra"
    expected = -sum(math.log(conditional(model, text[:i], text[i])) for i in range(len(text)))
    assert model.score(text) == (pytest.approx(expected), len(text))


def test_few_words_are_counted_and_not_scored():
    model = train_ngram(["some words of training text"])
    result = ppl_ocr(["one two three four", "", "some words of training text"], model)
    assert (result.num_images, result.num_scored, result.num_too_short) == (3, 1, 2)
    assert result.unit == "character" and "6-gram" in result.model
    nothing = ppl_ocr(["too short"], model)
    assert nothing.perplexity is None and nothing.interval_95 is None


def test_interval_covers_the_perplexity_and_repeats():
    prose = stdlib_prose()
    model = train_ngram(prose[:200])
    first, second = ppl_ocr(prose[200:230], model), ppl_ocr(prose[200:230], model)
    assert first == second
    assert first.interval_95[0] < first.perplexity < first.interval_95[1]


def test_no_text_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="training split"):
        train_ngram(["", "  "])


def test_transformers_model_equals_its_own_loss(tmp_path):
    import_torchvision()
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {c: i for i, c in enumerate(["<s>", "<unk>", *string.ascii_lowercase, " "])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()
    network.save_pretrained(tmp_path)

    model = TransformersModel(str(tmp_path))
    text = "the quick brown fox jumps"
    ids = [words[c] for c in text]
    expected = 0.0
    for piece in ([0, *ids[:15]], [0, *ids[15:]]):
        tokens = torch.tensor([piece])
        expected += network(tokens, labels=tokens).loss.item() * (len(piece) - 1)
    assert model.score(text) == (pytest.approx(expected, rel=1e-5), 25)
    result = ppl_ocr([text], model)
    assert result.unit == "token" and result.perplexity == pytest.approx(np.exp(expected / 25), rel=1e-5)


def test_missing_language_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        TransformersModel(str(tmp_path))
