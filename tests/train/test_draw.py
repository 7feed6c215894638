"""Pictures drawn while training goes on: under every kind of engine, and without a trace in the training."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from code_sets import make_root, tiny_spec, write_codes
from PIL import Image
from safetensors.torch import save_file
from test_elastic import losses

from data_specs.manifest import merge
from data_specs.receipts import commit
from data_specs.records import Identity, RangeUnit, Sample
from data_specs.spec import Spec
from data_specs.units import write_plan
from pipeline.png import encode_photo
from pipeline.workers import Workers
from tokenize_jobs.decode import decode_codes, grid
from tokenize_jobs.launch import TrainingFailed
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import load_tokenizer, save_tokenizer
from train.draw import SHOWN, classes_of, given_codes, open_given, sample_batch
from train.linear import MklLinear, choose_products
from train.model import DnDTransformer
from train.model import config_of as transformer_config
from train.sample_job import _setup, settle
from train.sampling import FREE
from train.weights import CONFIG, WEIGHTS, load_transformer


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


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL")
def test_workers_pack_weights_for_the_rows_that_they_decode(tmp_path: Path) -> None:
    """MKL multiplies by what it packed only as many rows as it was packed for; workers packed for sixteen."""
    spec = tiny_spec("sample={batch_size: 3, candidates: 2, guidance: 2, dtype: float32, ema: false}")
    config = transformer_config(spec)
    (tmp_path / "transformer").mkdir()
    save_file(DnDTransformer(config).state_dict(), tmp_path / "transformer" / WEIGHTS)
    (tmp_path / "transformer" / CONFIG).write_text(json.dumps(asdict(config)))
    products = dict.fromkeys(choose_products(config, torch.float32, 12), "mkl")
    work = _setup(spec, str(tmp_path), "cpu", products)
    cells = [cell.cell_contents for cell in work.__closure__ or ()]
    (model,) = [found for found in cells if isinstance(found, DnDTransformer)]
    assert {found.rows for found in model.modules() if isinstance(found, MklLinear)} == {12}


def test_what_is_given_are_codes(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "codes"), [2])
    write_codes(str(tmp_path / "empty"), [0])
    plan = write_plan(f"{tmp_path}/images", "0" * 64, Identity(stage="test"), [RangeUnit(unit=0, first=0, count=1)])
    picture = encode_photo(np.zeros((8, 8, 3), np.uint8))
    commit(plan.set_uri, plan.digest, 0, [Sample("a", {"png": picture, "cls": b"0", "json": b"{}"})])
    merge(plan, "images")
    for name in ("empty", "images"):
        with pytest.raises(ValueError, match=rf"^sample.given.codes {name}: has no codes: name a code set"):
            open_given(tiny_spec(f"sample.given={{codes: {name}, depths: 1}}"), str(tmp_path))
    assert open_given(tiny_spec(), str(tmp_path)) is None
    spec = tiny_spec("sample.given={codes: codes, depths: 1}")
    items = open_given(spec, str(tmp_path))
    assert items is not None
    codes = given_codes(spec, items, 1, 2)
    wanted = np.stack([items[number]["codes"].reshape(-1, 2) for number in (1, 0)])
    assert (codes[..., 0].numpy() == wanted[..., 0]).all() and (codes[..., 1] == FREE).all()


@pytest.mark.parametrize("tree", [{}, {"sample": 1}, {"sample": {"dtype": 5, "batch_size": 2}, "products": {}}])
def test_a_plan_that_is_not_of_samples_is_named(tmp_path: Path, tree: dict[str, Any]) -> None:
    write_plan(f"{tmp_path}/samples/default/codes", "0" * 64, Identity(stage="sample", spec=tree), [])
    with pytest.raises(ValueError, match=r"^samples/default/codes: its plan is not that of samples; draw under"):
        settle(tiny_spec(), str(tmp_path), Workers())


def test_without_a_tokenizer_training_does_not_begin(tmp_path: Path) -> None:
    from train.job import train

    with pytest.raises(TrainingFailed, match=r"no tokenizer, which train\.sample_every needs"):
        train(tiny_spec("train.sample_every=2"), make_root(tmp_path))
