"""That a GPU computes what a CPU does: golden tensors, graphs against eager code, and fifty steps on the same codes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.accept.machine import error
from benchmarks.accept.record import Row, Setting
from benchmarks.sample import random_model
from benchmarks.train import plain_step
from data_specs.spec import load_spec
from tokenize_jobs.device import autocast
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from train.engine import build_optimizer
from train.model import DnDTransformer, TransformerConfig
from train.sampling import sample_codes

CHECKOUT = Path(__file__).resolve().parents[2]
TRANSFORMERS = ("transformer_1head_uncond", "transformer_2head_cfg")
TOKENIZER = "rqvae_shared_codebook"
# Relative errors of logits and images: products of about a hundred terms, a few in a row
ALLOWED = {"float32": 1e-5, "TF32": 3e-3, "bfloat16": 5e-2}


# ---- golden tensors ------------------------------------------------------------------------------------------------
def golden(setting: Setting) -> Iterator[Row]:
    """Yield rows comparing results with the authors' own numbers.

    The arithmetic is float32, TF32 where a GPU has it, and bfloat16.
    """
    folder = Path(os.environ.get("DND_SHARED", CHECKOUT.parent / "shared")) / "reference"
    if not folder.is_dir():
        yield Row(part="golden", what="golden tensors", measured=None, note=f"not at {folder}: set DND_SHARED")
        return
    for kind in ALLOWED if setting.on_gpu else ("float32", "bfloat16"):
        with _tf32(kind == "TF32"):
            dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
            for name in TRANSFORMERS:
                yield from _transformer(folder / f"{name}.safetensors", kind, dtype, setting.device)
            yield from _tokenizer(folder / f"{TOKENIZER}.safetensors", kind, dtype, setting.device)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def _transformer(path: Path, kind: str, dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    tensors, about = _read(path, device)
    model = DnDTransformer(TransformerConfig.from_released(json.loads(about["config"])))
    model.load_state_dict(_weights(tensors))
    model = model.to(device, dtype).eval()
    with torch.inference_mode():
        logits = model(tensors["codes"], tensors["cond"]).transpose(1, 2)
    what = f"{path.stem}, {kind}: logits"
    yield Row(part="golden", what=what, measured=error(logits, tensors["logits"]), most=ALLOWED[kind])
    if kind == "float32":
        for name in (name for name in tensors if name.startswith("greedy.cfg")):
            codes = sample_codes(model, tensors["cond"], guidance=float(name.removeprefix("greedy.cfg")), temperature=0)
            assert isinstance(codes, Tensor)
            yield _equal("golden", f"{path.stem}: greedy samples, guidance {name[10:]}", codes, tensors[name])


def _tokenizer(path: Path, kind: str, dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    tensors, about = _read(path, device)
    model = RQVAE(RQVAEConfig.from_released(json.loads(about["hparams"]), json.loads(about["ddconfig"])))
    model.load_state_dict(_weights(tensors), strict=False)
    model = model.to(device).eval()
    with torch.inference_mode(), autocast(device, dtype):
        images, latents = model.decode(tensors["codes"]), model.latents(tensors["images"])
        codes = model.encode(tensors["images"])
    what = f"{path.stem}, {kind}"
    yield Row(part="golden", what=f"{what}: images", measured=error(images, tensors["decode_code"]), most=ALLOWED[kind])
    yield Row(part="golden", what=f"{what}: latents", measured=error(latents, tensors["z_e"]), most=ALLOWED[kind])
    if kind == "float32":
        yield _equal("golden", f"{path.stem}: codes", codes, tensors["codes"])


def _read(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt", str(device)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "state_dict."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _equal(part: str, what: str, found: Tensor, wanted: Tensor) -> Row:
    """Share of codes that are equal; rounding may change one of ten thousand."""
    return Row(part=part, what=what, measured=float((found == wanted).float().mean()), least=0.9999)


# ---- graphs --------------------------------------------------------------------------------------------------------
def graphs(setting: Setting) -> Iterator[Row]:
    """Yield comparisons of the sampler's greedy codes with those of the whole pass without any cache.

    On a GPU the sampler's codes come from captured graphs.

    For every bucket of lengths, guided and not, two batch sizes, each twice; then the memory that is left.
    """
    side = 8 if setting.tiny else 16
    config = TransformerConfig(4, 2, 128, 61, (side, side), (1, 3), num_classes=4, class_dropout=0.1)
    for _ in _of_batches(config, setting, (1,)):  # what CUDA's libraries keep for themselves is there afterwards
        pass
    before = torch.cuda.memory_allocated() if setting.on_gpu else 0
    yield from _of_batches(config, setting, (2, 5))
    if setting.on_gpu:
        left = (torch.cuda.memory_allocated() - before) / 1e6
        yield Row(part="graphs", what="memory left behind", measured=left, unit="MB", most=1.0)


def _of_batches(config: TransformerConfig, setting: Setting, batches: tuple[int, ...]) -> Iterator[Row]:
    model = random_model(config, 0.3).to(setting.device)
    for batch in batches:
        classes = torch.arange(batch, device=setting.device) % 4
        for guidance in (1.0, 2.0):
            for round_ in ("captured", "replayed"):
                codes = sample_codes(model, classes, guidance=guidance, temperature=0)
                assert isinstance(codes, Tensor)
                what = f"greedy codes, batch {batch}, guidance {guidance:g}, {round_}"
                yield _equal("graphs", what, codes, _likeliest(model, codes, classes, guidance))


@torch.inference_mode()
def _likeliest(model: DnDTransformer, codes: Tensor, classes: Tensor, guidance: float) -> Tensor:
    condition = model(codes, classes)
    unguided = model(codes, torch.full_like(classes, model.config.num_classes))
    return (unguided + (condition - unguided) * guidance).argmax(-1)


# ---- training ------------------------------------------------------------------------------------------------------
def agree(setting: Setting) -> Iterator[Row]:
    """Yield rows comparing the losses, in bits per code, of training on a CPU and on the device.

    Both take the same codes in float32, without dropout.
    """
    steps = 5 if setting.tiny else 50
    on_cpu, here = (_losses(torch.device(kind), steps) for kind in ("cpu", setting.device))
    apart = max(abs(a - b) for a, b in zip(on_cpu, here, strict=True))
    what = f"{steps} steps on CPU and device, largest difference"
    yield Row(part="agree", what=what, measured=apart, unit="bits", most=2e-3)
    yield Row(part="agree", what="bits a code learned", measured=on_cpu[0] - here[-1], unit="bits", least=0.05)


def _losses(device: torch.device, steps: int) -> list[float]:
    spec = load_spec("demo", ["train.learning_rate=1e-3"])
    config = TransformerConfig(4, 4, 128, 64, (8, 8), (1, 3), token_dropout=0, residual_dropout=0, ffn_dropout=0)
    torch.manual_seed(0)
    model = DnDTransformer(config)
    codes = torch.randint(64, (16, 64, 2)).sort(1).values.to(device)
    model = model.to(device).train()
    optimizer = build_optimizer(model, spec)
    found = list[Tensor]()
    for _ in range(steps):
        found.append(plain_step(model, optimizer, codes, codes.new_zeros(16)))
    return [float(loss) / math.log(2) for loss in found]
