"""The tokenizer beside the authors' own code on random weights of every kind of configuration.

Their numbers for `weights_of` stand in NUMBERS, so that they are compared everywhere; with a checkout of
https://github.com/chenllliang/DnD-Transformer (or kakaobrain/rq-vae-transformer) named by DND_REFERENCE their code
runs beside ours, gradients and moving averages too, and `python tests/tokenize_jobs/test_reference.py` makes NUMBERS.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenize_jobs.losses import PatchDiscriminator, discriminator_hinge
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig

REFERENCE = os.environ.get("DND_REFERENCE")
beside_theirs = pytest.mark.skipif(not REFERENCE, reason="DND_REFERENCE names no checkout of the authors' code")

HPARAMS = {
    "bottleneck_type": "rq",
    "embed_dim": 16,
    "n_embed": 32,
    "latent_shape": [8, 8, 16],
    "code_shape": [8, 8, 2],
    "shared_codebook": True,
    "decay": 0.99,
    "restart_unused_codes": False,
    "loss_type": "mse",
    "latent_loss_weight": 0.25,
}
DDCONFIG = {
    "double_z": False,
    "z_channels": 16,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [8],
    "dropout": 0.0,
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shared": ({}, {}),
    "own codebooks": ({"shared_codebook": False, "code_shape": [8, 8, 4]}, {}),
    "eight deep": ({"code_shape": [8, 8, 8]}, {}),
    "one deep": ({"code_shape": [8, 8, 1]}, {}),
    "folded": ({"code_shape": [4, 4, 3]}, {}),
    "folded unevenly": ({"code_shape": [4, 2, 3], "shared_codebook": False}, {}),
    "not square": ({"latent_shape": [8, 4, 16], "code_shape": [8, 4, 2]}, {}),
    "sizes listed": ({"shared_codebook": False, "n_embed": [32, 32], "decay": [0.9, 0.9]}, {}),
    "attention nowhere": ({}, {"attn_resolutions": []}),
    "attention everywhere": ({}, {"attn_resolutions": [32, 16, 8]}),
    "another resolution": ({}, {"resolution": 64, "attn_resolutions": [16]}),
    "odd resolution": ({}, {"resolution": 36, "attn_resolutions": [18]}),
    "one block": ({}, {"num_res_blocks": 1}),
    "three blocks": ({}, {"num_res_blocks": 3, "ch_mult": [1, 2, 2]}),
    "one level": ({}, {"ch_mult": [2], "resolution": 8}),
    "wider latents": ({}, {"z_channels": 24}),
    "narrow codes": ({"embed_dim": 3, "latent_shape": [8, 8, 3]}, {}),
}
# For each kind: sum of the codes of each depth; commitment loss; mean and deviation of the reconstruction and of the
# images from the first code of each position.
NUMBERS: dict[str, tuple[list[int], list[float]]] = {
    "shared": ([2351, 2305], [2.066986, 1.514867, 0.650688, 1.503921, 0.648766]),
    "own codebooks": ([2351, 3143, 1429, 2004], [1.630429, 1.522679, 0.652167, 1.503921, 0.648766]),
    "eight deep": (
        [2351, 2305, 2639, 2776, 2202, 1942, 2186, 2372],
        [1.819461, 1.523969, 0.654155, 1.503921, 0.648766],
    ),
    "one deep": ([2351], [2.189086, 1.503921, 0.648766, 1.503921, 0.648766]),
    "folded": ([896, 57, 386], [3.276251, 1.532559, 0.653394, 1.518491, 0.651349]),
    "folded unevenly": ([73, 106, 126], [3.975827, 1.535284, 0.686796, 1.531961, 0.680675]),
    "not square": ([1171, 1038], [1.976427, 1.521982, 0.655167, 1.518031, 0.644061]),
    "sizes listed": ([2351, 3143], [1.997407, 1.507033, 0.632098, 1.503921, 0.648766]),
    "attention nowhere": ([1595, 1805], [1.7926, 1.585781, 0.697054, 1.571802, 0.697185]),
    "attention everywhere": ([1973, 1599], [4.572831, 1.548028, 0.634025, 1.535568, 0.642558]),
    "another resolution": ([2351, 2305], [2.066986, 1.514867, 0.650688, 1.503921, 0.648766]),
    "odd resolution": ([3253, 1811], [2.860394, 1.550981, 0.621909, 1.554992, 0.629186]),
    "one block": ([2415, 2466], [1.396577, 1.563157, 0.65804, 1.566375, 0.679668]),
    "three blocks": ([1736, 2702], [1.791037, 1.503415, 0.620911, 1.506875, 0.646044]),
    "one level": ([782, 1365], [1.390126, 2.001193, 0.594103, 1.965261, 0.616624]),
    "wider latents": ([640, 2895], [1.508253, 0.983273, 0.834386, 0.964748, 0.896757]),
    "narrow codes": ([1672, 900], [1.869228, 1.509201, 0.689405, 1.515313, 0.679714]),
}


def settings(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    hparams, ddconfig = KINDS[kind]
    return {**HPARAMS, **hparams}, {**DDCONFIG, **ddconfig}


def weights_of(model: Any) -> dict[str, Tensor]:
    """Weights that depend on nothing but names and shapes; a shared codebook has those of depth 0."""
    rng, state = np.random.default_rng(0), {}
    for name, tensor in sorted(model.state_dict().items()):
        values = rng.normal(size=tuple(tensor.shape))
        if "cluster_size" in name:
            values = np.abs(values)
        elif "codebooks" not in name and tensor.dim() > 1:
            values /= tensor[0].numel() ** 0.5
        state[name] = torch.from_numpy(values).float()
    if model.quantizer.codebooks[0] is model.quantizer.codebooks[-1]:
        state = {name: state[re.sub(r"codebooks\.\d+", "codebooks.0", name)] for name in state}
    return state


def images_of(config: RQVAEConfig) -> Tensor:
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, *config.image_size))
    return torch.from_numpy(pixels).float()


def ours(kind: str) -> RQVAE:
    model = RQVAE(RQVAEConfig.from_released(*settings(kind)))
    model.load_state_dict(weights_of(model))
    return model.eval()


def measure(recon: Tensor, loss: Tensor, codes: Tensor, first: Tensor) -> tuple[list[int], list[float]]:
    """What NUMBERS holds of a forward pass."""
    numbers = [loss, recon.mean(), recon.std(), first.mean(), first.std()]
    return codes.sum((0, 1, 2)).tolist(), [round(float(number), 6) for number in numbers]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_the_authors(kind: str) -> None:
    model = ours(kind)
    recon, loss, codes = model(images_of(model.config))
    of_codes, numbers = measure(recon, loss, codes, model.decode(codes, 1))
    assert of_codes == NUMBERS[kind][0]
    assert numbers == pytest.approx(NUMBERS[kind][1], rel=1e-4, abs=1e-4)


# ---- their code beside ours ----------------------------------------------------------------------------------------
def their(module: str) -> types.ModuleType:
    """A module of their package `rqvae`, without the parts of it that import what is not installed here."""
    assert REFERENCE
    base = next(path for path in (Path(REFERENCE, "src/rqvae"), Path(REFERENCE, "rqvae")) if path.is_dir())
    for name in ("rqvae", "rqvae.models", "rqvae.losses", "rqvae.losses.vqgan"):
        package = types.ModuleType(name)
        package.__path__ = [str(base.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(name, package)
    return importlib.import_module(f"rqvae.{module}")


def theirs(kind: str) -> Any:
    hparams, ddconfig = settings(kind)
    model = their("models.rqvae.rqvae").RQVAE(**hparams, ddconfig=ddconfig, checkpointing=False)
    model.load_state_dict(weights_of(model))
    return model.eval()


@beside_theirs
@pytest.mark.parametrize("kind", KINDS)
def test_theirs_and_ours_agree(kind: str) -> None:
    """Latents, codes, loss, images from all codes and from the first ones; then a step of training."""
    model, other = ours(kind), theirs(kind)
    images = images_of(model.config)
    close = {"atol": 1e-4, "rtol": 0}
    with torch.no_grad():
        codes = other(images)[2]
        assert torch.equal(model.encode(images), codes)
        torch.testing.assert_close(model.latents(images), other.encode(images), **close)
        for depth in range(codes.shape[-1]):
            partial = other.decode_partial_code(codes, depth, "add")
            torch.testing.assert_close(model.decode(codes, depth + 1), partial, **close)
    for one in (model, other):
        recon, loss, _ = one.train()(images)
        ((recon - images).square().mean() + 0.25 * loss).backward()
    gradients = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.pop(name), atol=1e-4, rtol=1e-3)
    assert not gradients
    state = other.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], **close)  # the moving averages of the codebooks among them


@beside_theirs
def test_their_discriminator_is_ours() -> None:
    other = their("losses.vqgan.discriminator").NLayerDiscriminator(n_layers=2)
    model = PatchDiscriminator()
    model.load_state_dict(other.state_dict())
    fake, real = torch.rand(2, 4, 3, 32, 32) * 2 - 1
    wanted = other(fake, real)
    logits = model(fake), model(real)
    torch.testing.assert_close(logits, wanted)
    hinge = their("losses.vqgan.gan_loss").hinge_d_loss(wanted[1], wanted[0])
    torch.testing.assert_close(discriminator_hinge(logits[1], logits[0]), hinge)


if __name__ == "__main__":
    for kind in KINDS:
        with torch.no_grad():
            model = theirs(kind)
            recon, loss, codes = model(images_of(RQVAEConfig.from_released(*settings(kind))))
            print(f'    "{kind}": {measure(recon, loss, codes, model.decode_partial_code(codes, 0, "add"))},')
