"""Muon: what its steps are, the same under every stage and on any ranks, and over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch
from code_sets import NO_DROPOUT, make_root, tiny_spec
from test_elastic import copy, losses

from train.muon import orthogonal


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24), (2, 3, 32, 32)])
def test_matrices_become_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-3
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.quantile(0.1) > 0.5 and values.max() < 1.3  # tiny ones, of square matrices, stay below
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert ((u @ v) * orthogonal(matrices)).sum((-2, -1)).div(min(shape[-2:])) == pytest.approx(0.95, abs=0.15)


def test_ranks_stages_and_restarts_make_the_same_steps(tmp_path: Path) -> None:
    common = (*NO_DROPOUT, "train.optimizer=muon", "train.validate_every=100", "train.checkpoint_every=6")
    alone = make_root(tmp_path / "alone")
    ranks.run(1, ranks.train_plainly, alone, *common, "train.zero_stage=0", "train.steps=12")
    two = make_root(tmp_path / "two")
    ranks.run(2, ranks.train_plainly, two, *common, "train.zero_stage=2", "train.steps=6")
    one = copy(two, "one")
    ranks.run(2, ranks.train_plainly, two, *common, "train.zero_stage=1", "train.steps=12")
    ranks.run(1, ranks.train_plainly, one, *common, "train.zero_stage=1", "train.steps=12")
    wanted = losses(alone)
    assert wanted[-1] < wanted[0] - 0.2
    for root in (two, one):
        assert losses(root) == pytest.approx(wanted, abs=2e-4)


def test_it_is_not_adamw_and_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer muon works at zero_stage 0, 1 and 2"):
        tiny_spec("train.optimizer=muon", "train.zero_stage=3")
