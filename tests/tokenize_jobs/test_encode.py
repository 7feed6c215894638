"""Codes do not depend on how they are batched, and reconstructions from the first codes are scored depth by depth."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import drawn, make_root, tiny_spec

from data_specs import open_shards, table
from data_specs.records import Dropped, Reason, Sample
from data_specs.units import read_plan
from pipeline.workers import Workers, kept
from tokenize_jobs.encode import encode_shard, encode_views, fitting_batch, prepare
from tokenize_jobs.job import DECODE, TOKENIZE, settle_batch
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from tokenize_jobs.training import fit
from tokenize_jobs.weights import save_tokenizer
from train.evaluation.reconstruction import RAW_BITS, bits_per_pixel, difference
from train.reconstruct_job import score_depths

SPEC = tiny_spec("tokenize.compute_batch=16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root with images and a tokenizer of 40 steps."""
    root = make_root(tmp_path_factory.mktemp("encode"))
    fit(SPEC, root)
    return root


def test_batches_agree_with_single_images(root: str) -> None:
    from tokenize_jobs.weights import load_tokenizer

    model = prepare(load_tokenizer(f"{root}/tokenizer"), 1)
    images = [drawn(number, 32) for number in range(1000, 1330)]
    together = np.stack(list(encode_views(model, iter(images), SPEC)))
    single = tiny_spec("tokenize.compute_batch=1")
    alone = np.stack(list(encode_views(model, iter(images), single)))
    assert together.size > 10_000 and np.mean(together == alone) >= 0.9999
    again = np.stack(list(encode_views(model, iter(images), SPEC)))
    assert np.array_equal(together, again)


def test_every_sample_of_a_shard_is_encoded_in_order(root: str) -> None:
    from tokenize_jobs.weights import load_tokenizer

    model, images = prepare(load_tokenizer(f"{root}/tokenizer"), 1), open_shards(f"{root}/images/train")
    samples = [s for s in encode_shard(model, SPEC, "train", images.shard(0)) if isinstance(s, Sample)]
    assert [sample.key for sample in samples] == [images[i]["__key__"] for i in range(30)]
    wanted = np.stack(list(encode_views(model, (images[i]["image"] for i in range(30)), SPEC)))
    codes = [np.load(io.BytesIO(sample.fields["codes.npy"]), allow_pickle=False)[0] for sample in samples]
    assert np.array_equal(np.stack(codes), wanted)


def test_only_what_matches_is_encoded(root: str) -> None:
    from tokenize_jobs.weights import load_tokenizer

    model, images = prepare(load_tokenizer(f"{root}/tokenizer"), 1), open_shards(f"{root}/images/train")
    every = [outcome.key for outcome in encode_shard(model, SPEC, "train", images.shard(0))]
    chosen = tiny_spec("tokenize.compute_batch=16", f"tokenize.where=key > '{every[9]}' and cls >= 0")
    outcomes = list(encode_shard(model, chosen, "train", images.shard(0)))
    written = [outcome for outcome in outcomes if isinstance(outcome, Sample)]
    left_out = [outcome for outcome in outcomes if isinstance(outcome, Dropped)]
    assert [sample.key for sample in written] == sorted(every)[10:]
    assert [sample.row for sample in written] == table.table_of(images.shard(0)).to_pylist()[10:]
    assert {one.reason for one in left_out} == {Reason.WHERE} and len(left_out) == 10
    with pytest.raises(ValueError, match=r"no_such.*columns: key"):
        TOKENIZE.make(tiny_spec("tokenize.where=no_such = 1"), root, Workers(num_workers=1))


def test_where_nothing_was_encoded_decoding_says_so(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    spec = tiny_spec("tokenize.where=cls > 5", "tokenize.images={val: images/val}")
    save_tokenizer(RQVAE(config_of(spec)), tmp_path / "tokenizer")
    TOKENIZE.make(spec, root, Workers(num_workers=0))
    with pytest.raises(ValueError, match=r"images.*: the shard set is empty: there are no pictures to write"):
        list(DECODE.run(spec, root, Workers(num_workers=0), codes="codes/val", out="pictures"))


@pytest.mark.system
def test_the_batch_that_fits_is_settled_before_planning(root: str, ray_session: None) -> None:
    spec = tiny_spec("tokenize.compute_batch=null")
    assert settle_batch(spec, root, Workers()).tokenize.compute_batch == 32
    with kept(Workers(num_workers=1)) as same:
        TOKENIZE.make(spec, root, same)
        result = score_depths(spec, root, "val", same, shown=4)
    plan = read_plan(f"{root}/codes/train")
    assert plan and plan.identity.spec["tokenize"]["compute_batch"] == 32  # type: ignore[index,call-overload]
    with pytest.raises(ValueError, match=r"tokenize\.compute_batch was 32, is now 16"):
        TOKENIZE.make(SPEC, root, Workers(num_workers=1))
    first, second = result.depths
    assert second.psnr and first.psnr and second.psnr > first.psnr and second.ssim > first.ssim and first.lpips is None
    assert first.bits_per_pixel == pytest.approx(4 * 4 * 5 / 32**2)
    assert Path(root, "reconstructions/val/depths.png").stat().st_size > 1000
    assert Path(root, "evaluation/reconstruction-val.json").is_file()


def test_large_images_are_encoded_few_at_a_time() -> None:
    with torch.device("meta"):
        large = RQVAE(RQVAEConfig(image_size=512, grid=32, depth=2, codebook_size=16384))
    small = RQVAE(config_of(SPEC))
    large.to_empty(device="cpu")
    assert (fitting_batch(large), fitting_batch(small)) == (2, 32)


def test_sizes_and_differences() -> None:
    from data_specs.spec import load_spec

    shape = load_spec("imagenet_16x16x2").shape
    assert bits_per_pixel(shape, 1) / RAW_BITS == pytest.approx(256 * 14 / (256 * 256 * 24))
    paper = bits_per_pixel(shape.model_copy(update={"codebook_size": 8192}), 1)  # its example: f = 16, N = 8192
    assert f"{paper / RAW_BITS:.2%}" == "0.21%"
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert {difference(black, black)[0, 0, 0], difference(white, black)[0, 0, 0]} == {128, 0}
    assert difference(black, white)[0, 0, 0] == 255
