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

from data_specs.spec import Spec
from tokenize_jobs.decode import decode_codes, grid
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import load_tokenizer, save_tokenizer
from train.draw import SHOWN, classes_of, sample_batch
from train.weights import load_transformer


def with_tokenizer(folder: Path) -> str:
    torch.manual_seed(0)
    root = make_root(folder)
    save_tokenizer(RQVAE(config_of(tiny_spec())), folder / "tokenizer")
    return root


def picture(root: str, step: int) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(Path(root, f"transformer/samples/step_{step:08d}.png").read_bytes())))


def redrawn(root: str, spec: Spec) -> np.ndarray:
    """The picture that one process without ranks draws from a training's last weights."""
    model = load_transformer(f"{root}/transformer", ema=spec.sample.ema)
    codes = sample_batch(model, spec, classes_of(spec, 0, SHOWN), 0).unflatten(1, spec.shape.grid)
    tokenizer = load_tokenizer(f"{root}/tokenizer")
    return grid(list(decode_codes(tokenizer, codes.numpy(), spec.sample.rounding)))


def test_pictures_change_nothing_and_are_what_the_weights_draw(tmp_path: Path) -> None:
    common = ("train.steps=5", "train.validate_every=100", "sample.temperature=0.5", "train.zero_stage=3")
    plain, drawn = (with_tokenizer(tmp_path / name) for name in ("plain", "drawn"))
    ranks.run(2, ranks.train_plainly, plain, *common)
    ranks.run(2, ranks.train_plainly, drawn, *common, "train.sample_every=2")
    assert losses(drawn) == losses(plain)
    assert not Path(plain, "transformer/samples").exists()
    assert [p.name for p in sorted(Path(drawn, "transformer/samples").iterdir())] == [
        f"step_{step:08d}.png" for step in (2, 4, 5)
    ]
    assert picture(drawn, 5).shape == (2 * 34 + 2, 8 * 34 + 2, 3)
    # the same weights in other batches: sums differ in their last bits, so that at most a rare draw falls otherwise
    assert (picture(drawn, 5) == redrawn(drawn, tiny_spec(*common))).mean() > 0.9
    assert (picture(drawn, 4) != picture(drawn, 2)).any()


def test_without_a_tokenizer_training_does_not_begin(tmp_path: Path) -> None:
    from train.job import TrainingFailed, train

    with pytest.raises(TrainingFailed, match=r"no tokenizer, which train\.sample_every needs"):
        train(tiny_spec("train.sample_every=2"), make_root(tmp_path))
