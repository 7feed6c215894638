"""The flattened arm: a position's codes side by side, one head, and the same pictures back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from code_sets import tiny_spec, write_codes

from tokenize_jobs.decode import codes_by_depth, decode_codes
from tokenize_jobs.encode import encode_views, flattened
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import save_tokenizer
from train.draw import sample_range
from train.generate import load_root
from train.model import DnDTransformer
from train.model import config_of as transformer_config

FLAT = ("tokenize.flatten=true", "transformer.head_layers=[1]")


def test_codes_lie_side_by_side_and_come_back() -> None:
    codes = np.arange(2 * 4 * 4 * 2).reshape(2, 4, 4, 2) % 16
    flat = flattened(codes, 16)
    assert flat.shape == (2, 4, 8, 1)
    assert flat[1, 2, 6, 0] == codes[1, 2, 3, 0] and flat[1, 2, 7, 0] == codes[1, 2, 3, 1] + 16
    shape = tiny_spec().shape
    assert np.array_equal(codes_by_depth(flat, shape), codes) and np.array_equal(codes_by_depth(codes, shape), codes)
    assert np.array_equal(codes_by_depth((flat + 16) % 32, shape), codes)  # of the other codebook: only the row counts


def test_encoded_flat_they_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    plain, flat = tiny_spec("tokenize.compute_batch=4"), tiny_spec("tokenize.compute_batch=4", *FLAT)
    model = RQVAE(config_of(plain)).eval()
    images = [np.random.default_rng(n).integers(256, size=(32, 32, 3)).astype(np.uint8) for n in range(6)]
    by_depth, side_by_side = (np.stack(list(encode_views(model, iter(images), spec))) for spec in (plain, flat))
    assert side_by_side.dtype == np.uint16 and side_by_side.shape == (6, *flat.codes.grid, 1)
    assert np.array_equal(decode_codes(model, side_by_side), decode_codes(model, by_depth))


def test_the_model_has_one_head_and_a_longer_sequence_and_is_trained_and_sampled(tmp_path: Path) -> None:
    spec = tiny_spec(*FLAT, "sample.batch_size=2")
    config = transformer_config(spec)
    assert (config.grid, config.depth, config.codebook_size) == ((4, 8), 1, 32)
    write_codes(str(tmp_path / "codes/train"), [20], shape=(4, 8, 1), vocabulary=32)
    write_codes(str(tmp_path / "codes/val"), [9], shape=(4, 8, 1), vocabulary=32)
    ranks.run(1, ranks.train_plainly, str(tmp_path), *FLAT, "train.steps=2", "train.zero_stage=0")
    save_tokenizer(RQVAE(config_of(spec)), tmp_path / "tokenizer")
    root = load_root(str(tmp_path))
    assert [picture.size for picture in root.pictures(2)] == [(32, 32)] * 2
    samples = list(sample_range(root.transformer, spec, 0, 3))
    assert len(samples) == 3 and isinstance(root.transformer, DnDTransformer)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="head_layers has 2 entries for codes of depth 1"):
        tiny_spec("tokenize.flatten=true")
    with pytest.raises(ValueError, match="8 codebooks of 16384 are more codes than"):
        tiny_spec(*FLAT, "shape={image_size: 32, grid: [4, 4], depth: 8, codebook_size: 16384}")
    with pytest.raises(ValueError, match=r"sample\.given names positions and depths"):
        tiny_spec(*FLAT, "sample.given={codes: codes/val, depths: 1}")
