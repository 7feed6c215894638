"""The tokenizer agrees with the authors' numbers, and its shapes and options hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from data_specs.spec import load_spec
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig

TINY = {"embed_dim": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 16}
TINY_SQUARE = {"image_size": (16, 16), "grid": (8, 8), "depth": 3, "codebook_size": 32, **TINY}


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[RQVAE, dict[str, Tensor]]:
    with safe_open(shared / "reference" / "rqvae_shared_codebook.safetensors", "pt") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    model = RQVAE(RQVAEConfig.from_released(about["hparams"], about["ddconfig"]))
    prefix = "state_dict."
    model.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    return model.eval(), tensors


@torch.no_grad()
def test_goldens(golden: tuple[RQVAE, dict[str, Tensor]]) -> None:
    model, expected = golden
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(model.latents(expected["images"]), expected["z_e"], **close)
    assert torch.equal(model.encode(expected["images"]), expected["codes"])
    recon, loss, codes = model(expected["images"])
    assert torch.equal(codes, expected["codes"])
    torch.testing.assert_close(recon, expected["recon"], **close)
    torch.testing.assert_close(loss, expected["quant_loss"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(codes), expected["decode_code"], **close)
    torch.testing.assert_close(model.decode(codes, depths=1), expected["decode_partial_add_0"], **close)


@torch.no_grad()
def test_channels_last_and_autocast_keep_the_codes(golden: tuple[RQVAE, dict[str, Tensor]]) -> None:
    model, expected = golden
    images = expected["images"].contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.encode(images), expected["codes"])
    with torch.autocast("cpu", torch.bfloat16):
        recon, _, codes = model(images)
        given = model.quantizer.encode(expected["z_e"])
    assert torch.equal(given, expected["codes"])  # distances stay float32
    assert recon.dtype == torch.bfloat16
    assert (codes == expected["codes"]).float().mean() > 0.9


def test_state_dict_repeats_a_shared_codebook() -> None:
    shared_names = set(RQVAE(RQVAEConfig(**TINY_SQUARE)).state_dict())
    own_names = set(RQVAE(RQVAEConfig(**TINY_SQUARE, shared_codebook=False)).state_dict())
    assert shared_names == own_names
    tables = ("weight", "cluster_size_ema", "embed_ema")
    books = {f"quantizer.codebooks.{i}.{name}" for i in range(3) for name in tables}
    assert books == {name for name in own_names if name.startswith("quantizer")}


def test_weights_in_bfloat16_with_a_float32_codebook() -> None:
    model = RQVAE(RQVAEConfig(**TINY_SQUARE)).to(torch.bfloat16).eval()
    model.quantizer.float()
    codes = model.encode(torch.rand(2, 3, 16, 16))
    assert model.decode(codes).dtype == torch.bfloat16


@pytest.mark.parametrize("extra", [{}, {"patch": 2, "image_size": (16, 32)}])
def test_images_need_not_be_square(extra: dict) -> None:
    config = RQVAEConfig(**{**TINY_SQUARE, "image_size": (8, 16), "grid": (4, 4), **extra})  # folds 1 x 2 latents
    model = RQVAE(config).eval()
    codes = model.encode(torch.rand(2, 3, *config.image_size))
    assert codes.shape == (2, *config.code_shape)
    assert model.decode(codes).shape == (2, 3, *config.image_size)


@torch.no_grad()
def test_equal_squares_have_equal_codes_with_a_linear_encoder() -> None:
    torch.manual_seed(0)
    local = {"grid": (4, 4), "image_size": 32, "patch": 4, "encoder": "linear"}
    model = RQVAE(RQVAEConfig(**{**TINY_SQUARE, **local})).eval()
    square, images = 50 * torch.randn(3, 8, 8), 50 * torch.randn(2, 3, 32, 32)  # far apart: a new codebook is coarse
    images[0, :, 8:16, 16:24] = square
    images[1, :, 24:, :8] = square
    codes = model.encode(images)
    assert torch.equal(codes[0, 1, 2], codes[1, 3, 0]) and not torch.equal(codes[0, 1, 2], codes[0, 1, 1])
    assert model.decode(codes).shape == images.shape
    assert RQVAEConfig.from_json(model.config.to_json()) == model.config
    with pytest.raises(ValueError, match="encoder is linear"):
        replace(model.config, patch=1).to_released()


def test_decode_depths_outside_the_model_are_refused() -> None:
    model = RQVAE(RQVAEConfig(**TINY_SQUARE))
    for depths in (0, 4):
        with pytest.raises(ValueError, match="must be from 1 to 3"):
            model.decode(torch.zeros(1, 8, 8, 3, dtype=torch.int64), depths)


def test_gradients_reach_every_parameter() -> None:
    model = RQVAE(RQVAEConfig(**TINY_SQUARE)).train()
    images = torch.rand(4, 3, 16, 16)
    recon, commitment, _ = model(images)
    ((recon - images).square().mean() + commitment).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_config_round_trips_and_takes_single_numbers() -> None:
    config = RQVAEConfig(image_size=256, grid=16, depth=2, codebook_size=16384)
    assert RQVAEConfig.from_json(config.to_json()) == config
    older = {**json.loads(config.to_json()), "gradient": "rotation", "codebook_init": "normal"}
    assert RQVAEConfig.from_json(json.dumps(older)) == config
    assert config.latent_shape == (16, 16, 256)
    assert config.attn_resolutions == (16,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": 5}, "the grid of 5 must divide"),
        ({"ch": 48}, "multiples of 32"),
        ({"codebook_size": 70_000}, "at most 65536"),
        ({"image_size": 17}, "image_size 17"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RQVAEConfig(**{**TINY_SQUARE, **change})


def test_foreign_options_of_released_configs_are_refused() -> None:
    hparams = {
        "embed_dim": 8,
        "n_embed": 16,
        "shared_codebook": True,
        "latent_shape": [4, 4, 8],
        "code_shape": [4, 4, 2],
    }
    ddconfig = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 8}
    with pytest.raises(ValueError, match="ddconfig lacks z_channels"):
        RQVAEConfig.from_released(hparams, ddconfig)
    ddconfig["z_channels"] = 8
    assert RQVAEConfig.from_released(hparams, ddconfig).image_size == (8, 8)
    with pytest.raises(ValueError, match="double_z is True"):
        RQVAEConfig.from_released(hparams, {**ddconfig, "double_z": True})
    with pytest.raises(ValueError, match="a different one for each depth"):
        RQVAEConfig.from_released({**hparams, "n_embed": [16, 32]}, ddconfig)


def test_the_published_presets_are_as_large_as_the_released_files() -> None:
    """836 MB (V = 16384) and 811 MB (V = 4096), as the hub states: weights, Adam's two moments, codebook and its sums.

    What is left, 3 MB each time, is the archive's own.
    """
    sizes = []
    for preset in ("imagenet_16x16x2", "text_image_24x24x1"):
        spec = load_spec(preset)
        with torch.device("meta"):
            model = RQVAE(config_of(spec))
        codebook = 2 * spec.shape.codebook_size * spec.tokenizer.embed_dim
        sizes.append(4 * (3 * sum(weight.numel() for weight in model.parameters()) + codebook))
        assert spec.tokenizer.attention_sizes == () and spec.tokenizer.shared_codebook
    assert sizes == pytest.approx([836e6, 811e6], rel=0.005)
    assert sizes[0] - sizes[1] == 4 * 2 * (16384 - 4096) * 256 == pytest.approx(836e6 - 811e6, rel=0.01)
