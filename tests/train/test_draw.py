"""Pictures drawn while training goes on: under every kind of engine, and without a trace in the training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from code_sets import make_root, tiny_spec
from PIL import Image
from test_elastic import losses

from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.task import config_of
from tokenize_jobs.weights import save_tokenizer


def with_tokenizer(folder: Path) -> str:
    torch.manual_seed(0)
    root = make_root(folder)
    save_tokenizer(RQVAE(config_of(tiny_spec())), folder / "tokenizer")
    return root


def picture(root: str, step: int) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(Path(root, f"transformer/samples/step_{step:08d}.png").read_bytes())))


def test_pictures_change_nothing_and_are_the_same_on_any_ranks_and_stage(tmp_path: Path) -> None:
    common = ("train.steps=5", "train.validate_every=100", "sample.temperature=0.5")
    plain, drawn, apart = (with_tokenizer(tmp_path / name) for name in ("plain", "drawn", "apart"))
    ranks.run(2, ranks.train_plainly, plain, *common, "train.zero_stage=3")
    ranks.run(2, ranks.train_plainly, drawn, *common, "train.zero_stage=3", "train.sample_every=2")
    ranks.run(1, ranks.train_plainly, apart, *common, "train.zero_stage=0", "train.sample_every=4")
    assert losses(drawn) == losses(plain)
    assert not Path(plain, "transformer/samples").exists()
    assert [p.name for p in sorted(Path(drawn, "transformer/samples").iterdir())] == [
        f"step_{step:08d}.png" for step in (2, 4, 5)
    ]
    assert picture(drawn, 4).shape == (2 * 34 + 2, 8 * 34 + 2, 3)
    assert (picture(drawn, 4) == picture(apart, 4)).mean() > 0.9  # a draw may fall otherwise by rounding
    assert (picture(drawn, 4) != picture(drawn, 2)).any()


def test_without_a_tokenizer_training_does_not_begin(tmp_path: Path) -> None:
    from train.job import TrainingFailed, train

    with pytest.raises(TrainingFailed, match=r"no tokenizer, which train\.sample_every needs"):
        train(tiny_spec("train.sample_every=2"), make_root(tmp_path))
