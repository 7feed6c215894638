"""Greedy samples beside the authors' own code, where DND_REFERENCE names a checkout of it.

git clone https://github.com/chenllliang/DnD-Transformer
DND_REFERENCE=DnD-Transformer pytest tests/train/test_reference.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from test_sampling import random_model

from infra.bench.sample import authors_sampler
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
