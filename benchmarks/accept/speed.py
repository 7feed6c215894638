"""How fast sampling, encoding and the tokenizer's training are, against what their memory and the estimates say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.accept.machine import peak, reset_peak
from benchmarks.accept.record import Row, Setting
from benchmarks.rounds import seconds_of
from benchmarks.sample import authors_sampler, memory_bandwidth, random_model, step_bytes
from data_specs.spec import Spec, load_spec
from tokenize_jobs.device import autocast, to_device, training_layout
from tokenize_jobs.losses import LPIPS
from tokenize_jobs.memory import encoding_needs, training_needs
from tokenize_jobs.networks import Networks, config_of
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from train.linear import quantize_int8
from train.model import DnDTransformer
from train.model import config_of as transformer_config
from train.sampling import sample_codes

TINY_MODEL = ["transformer={num_layers: 2, num_heads: 2, width: 64, head_layers: [0, 1], class_dropout: 0.1}"]
TINY_MODEL += ["shape={image_size: 32, grid: [4, 4], depth: 2, codebook_size: 64}"]
TINY_MODEL += ["tokenizer={steps: 1, channels: 32, channel_multipliers: [1, 1], patch: 4, attention_sizes: []}"]
GOALS = {(1, "bfloat16"): 0.6, (32, "bfloat16"): 0.3, (128, "bfloat16"): 0.3}  # of what the memory allows
IMAGES_A_SECOND = {(1, "bfloat16"): 2.8, (32, "float32"): 15.0, (128, "bfloat16"): 68.0}  # estimated, XXL on an H100
PEAK = (0.85, 1.15)  # of the memory that is counted: cuDNN's workspaces are not


# ---- sampling ------------------------------------------------------------------------------------------------------
def sampling(setting: Setting) -> Iterator[Row]:
    """Yield the images/s of XXL with guidance 2 by batch and type.

    They are given as a share of what reading weights and caches allows.
    """
    speed = memory_bandwidth(setting.device)
    spec = load_spec("demo", TINY_MODEL) if setting.tiny else load_spec("imagenet_16x16x2")
    for dtype in ("bfloat16", "float32"):
        model = random_model(transformer_config(spec))
        model = model.to(setting.device, getattr(torch, dtype))
        for batch in (1, 2) if setting.tiny else (1, 32, 128):
            yield from _sampled(setting, model, dtype, batch, speed)
        if setting.on_gpu:
            yield _int8_is_refused(model)


def _sampled(setting: Setting, model: DnDTransformer, dtype: str, batch: int, speed: float) -> Iterator[Row]:
    classes = torch.zeros(batch, dtype=torch.int64, device=setting.device)
    seconds = seconds_of(lambda: sample_codes(model, classes, guidance=2.0), setting.device, 2)
    what = f"{dtype}, batch {batch}"
    key = (batch, dtype)
    estimated = IMAGES_A_SECOND.get(key) if setting.on_gpu else None
    yield Row(part="sample", what=what, measured=batch / seconds, unit="images/s", estimated=estimated)
    limit = step_bytes(model, 2 * batch) * model.config.num_positions / speed
    least = GOALS.get(key) if setting.on_gpu else None
    yield Row(part="sample", what=f"{what}: of memory's limit", measured=limit / seconds, least=least)
    if setting.reference:
        theirs = authors_sampler(setting.reference, model, 2.0)
        ratio = seconds_of(lambda: theirs(classes), setting.device, 1) / seconds
        yield Row(part="sample", what=f"{what}: x the authors' code", measured=ratio, least=1.0)


def _int8_is_refused(model: DnDTransformer) -> Row:
    try:
        quantize_int8(model)
    except ValueError:
        return Row(part="sample", what="int8 is refused", measured=1.0, least=1.0)
    return Row(part="sample", what="int8 is refused", measured=0.0, least=1.0)


# ---- the tokenizer -------------------------------------------------------------------------------------------------
def _specs(setting: Setting) -> Iterator[tuple[str, Spec]]:
    if setting.tiny:
        yield "32 px", load_spec("demo", TINY_MODEL)
        return
    for size in (256, 384):
        grid = f"shape.grid=[{size // 16}, {size // 16}]"
        yield f"{size} px", load_spec("imagenet_16x16x2", [f"shape.image_size={size}", grid])


def encoding(setting: Setting) -> Iterator[Row]:
    """Yield the images/s of the encoder in bfloat16, channels last and not, and the memory of it."""
    size = 2 if setting.tiny else 32
    for name, spec in _specs(setting):
        config = config_of(spec)
        for order, layout in (("NCHW", torch.contiguous_format), ("channels last", torch.channels_last)):
            reset_peak(setting)
            seconds = _encoding_seconds(setting, config, size, layout)
            what = f"{name}, batch {size}, {order}"
            yield Row(part="encode", what=what, measured=size / seconds, unit="images/s")
        needed = encoding_needs(config, torch.bfloat16).of(size)
        yield from peak(setting, "encode", f"{name}, batch {size}: peak", needed, None, PEAK[1])


def _encoding_seconds(setting: Setting, config: RQVAEConfig, size: int, layout: torch.memory_format) -> float:
    model = RQVAE(config).to(setting.device, memory_format=layout).eval()  # type: ignore[call-overload]
    images = np.zeros((size, *config.image_size, 3), np.uint8)

    def work() -> None:
        with torch.inference_mode(), autocast(setting.device, torch.bfloat16):
            model.encode(to_device(images, setting.device, layout))

    return seconds_of(work, setting.device, 3)


def tokenizer(setting: Setting) -> Iterator[Row]:
    """Yield the images/s of training steps with LPIPS and discriminator in bfloat16, and the memory of them."""
    for name, spec in _specs(setting):
        yield from _trained(setting, name, spec, 2 if setting.tiny else 8)


def _trained(setting: Setting, name: str, spec: Spec, size: int) -> Iterator[Row]:
    lpips = LPIPS() if spec.tokenizer.lpips_weights else None
    networks = Networks.of(spec.tokenizer, RQVAE(config_of(spec)), lpips).to(setting.device)
    optimizers = networks.optimizers()
    pixels = np.zeros((size, *networks.model.config.image_size, 3), np.uint8)
    images = to_device(pixels, setting.device, training_layout(setting.device))
    reset_peak(setting)

    def step() -> None:
        networks.add_gradients(images, torch.bfloat16, networks.discriminator is not None)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    seconds = seconds_of(step, setting.device, 3)
    what = f"{name}, micro batch {size}"
    yield Row(part="tokenizer", what=what, measured=size / seconds, unit="images/s")
    needed = training_needs(spec, 1, torch.bfloat16).of(size)
    yield from peak(setting, "tokenizer", f"{what}: peak", needed, *PEAK)
