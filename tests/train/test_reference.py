"""Greedy samples beside the authors' own code, where DND_REFERENCE names a checkout of it.

git clone https://github.com/chenllliang/DnD-Transformer
DND_REFERENCE=DnD-Transformer pytest tests/train/test_reference.py
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch
from test_sampling import random_model

from benchmarks.sample import authors_sampler
from train.model import TransformerConfig
from train.sampling import sample_codes

REFERENCE = os.environ.get("DND_REFERENCE")


@pytest.mark.skipif(not REFERENCE, reason="DND_REFERENCE names no checkout of the authors' code")
@pytest.mark.parametrize("heads", [(7,), (3, 7), (1, 4, 7), (0, 1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("guidance", [1.0, 1.7, 4.0])
def test_greedy_samples_are_the_authors(heads: tuple[int, ...], guidance: float) -> None:
    model = random_model(TransformerConfig(8, 3, 96, 61, (6, 6), heads, num_classes=4, class_dropout=0.1))
    classes = torch.tensor([0, 3, 1, 2])
    assert REFERENCE
    wanted = authors_sampler(Path(REFERENCE), model, guidance, greedy=True)(classes)
    assert torch.equal(sample_codes(model, classes, guidance=guidance, temperature=0), wanted.long())


@pytest.mark.skipif(not REFERENCE, reason="DND_REFERENCE names no checkout of the authors' code")
@pytest.mark.parametrize("heads", [(1, 4, 7), (0, 1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("guidance", [1.7, 4.0])
def test_guided_logits_of_the_authors_sampling_are_ours(
    heads: tuple[int, ...], guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits that the authors' sampler draws its own codes from, step by step, are those of our whole pass."""
    model = random_model(TransformerConfig(8, 3, 96, 61, (6, 6), heads, num_classes=4, class_dropout=0.1))
    classes, seen = torch.tensor([0, 3, 1, 2]), list[torch.Tensor]()
    assert REFERENCE
    theirs = authors_sampler(Path(REFERENCE), model, guidance)
    loop = importlib.import_module("dnd_transformer.generate_multitoken_v3")
    draw = loop.sample_func
    monkeypatch.setattr(
        loop, "sample_func", lambda logits, **how: (seen.append(logits[:, -1].clone()), draw(logits, **how))[1]
    )
    torch.manual_seed(1)
    codes = theirs(classes).long()
    condition, unguided = model(codes, classes), model(codes, torch.full_like(classes, 4))  # [B, L, D, V]
    wanted = torch.stack(seen, 1).unflatten(1, (36, len(heads)))
    torch.testing.assert_close(unguided + (condition - unguided) * guidance, wanted, atol=2e-4, rtol=1e-4)
