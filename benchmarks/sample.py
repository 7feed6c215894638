"""Sampling: our decoder against the plain eager loop (the published algorithm over a masked cache of full length) and,
given a checkout, against the authors' own code; all with the same weights, dtype and batch.

dnd bench sample imagenet_16x16x2 --set transformer.size=B --set transformer.head_layers=[9,11] \
  --set sample.guidance=2 --set sample.batch_size=1
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rounds import Comparison, compare, seconds_of
from data_specs.spec import load_spec
from tokenize_jobs.device import pick_device
from train.linear import packed, quantize_int8
from train.model import Attend, DnDTransformer, TransformerConfig, config_of, rotary_factors
from train.native import NativeLinear, native_code
from train.sampling import sample_codes

DEFAULT_BATCH = 16  # where the spec leaves it open


class Result(NamedTuple):
    """Rates in images/s by baseline, and what bounds a step: bytes of weights and cache, bytes/s of this memory."""

    comparisons: dict[str, Comparison]
    codes: int  # of an image
    batch: int
    step_bytes: float
    bandwidth: float
    steps: int  # for a batch of images
    agreement: float | None  # share of likeliest codes that are float32's


def sample(preset: str, rounds: int, overrides: list[str], reference: Path | None) -> Result:
    """Measure sampling against the baselines, all with the same random weights at temperature 1.

    Batch, guidance and dtype are the spec's; packing is done before the measurement.

    Raises:
        ValueError: the spec has a guidance for each depth.
    """
    device = pick_device()
    part = load_spec(preset, overrides).sample
    torch.set_num_threads(part.threads)
    batch = part.batch_size or DEFAULT_BATCH
    guidance = part.guidance
    if isinstance(guidance, list):
        raise ValueError(f"sample.guidance {guidance}: the baselines know one number for all depths: give one")
    dtype = ("bfloat16" if device.type == "cuda" else "float32") if part.dtype == "auto" else part.dtype
    wide = random_model(config_of(load_spec(preset, overrides))).to(device)
    model = wide if dtype == "float32" else deepcopy(wide).to(torch.bfloat16)
    small = quantize_int8(model) if dtype == "int8" else model
    rows = batch * (1 + (guidance != 1))
    ours = packed(small, rows)
    classes = torch.zeros(batch, dtype=torch.int64, device=device)
    baselines = {"the plain eager loop": lambda: len(plain_sample(model, classes, guidance).cpu())}
    if reference:
        theirs = authors_sampler(reference, model, guidance)
        baselines = {"the authors' code": lambda: len(theirs(classes).cpu()), **baselines}
    warm_up = model.config.dim < 512 or device.type == "cuda"  # else an image takes long enough
    return Result(
        {
            name: compare(lambda: len(sample_codes(ours, classes, guidance=guidance)), baseline, rounds, warm_up)
            for name, baseline in baselines.items()
        },
        model.config.num_positions * model.config.depth,
        batch,
        step_bytes(small, rows),
        memory_bandwidth(device),
        model.config.num_positions,
        None if dtype == "float32" else agreement(wide, ours),
    )


def random_model(config: TransformerConfig, std: float = 0.02) -> DnDTransformer:
    """Return a model of random weights, also in its output layers, which start at zero as no trained model's are."""
    torch.manual_seed(0)
    model = DnDTransformer(config).eval()
    for output in model.output.parameters():
        torch.nn.init.normal_(output, std=std)
    return model


def step_bytes(model: DnDTransformer, rows: int) -> float:
    """Return the bytes that a step must read: all weights but the tables, and the cache at its mean length."""
    config = model.config
    weights = sum(t.nbytes for name, t in model.state_dict().items() if "embedding" not in name)
    item = model.tok_embeddings.weight.itemsize
    return weights + rows * config.num_layers * 2 * config.dim * item * (config.num_positions + 1) / 2


def memory_bandwidth(device: torch.device) -> float:
    """Measure the bytes/s of a buffer that no cache holds.

    They are those of the fastest: a sum, a product with a vector, on a GPU also a copy.
    """
    rows = 2**13 if device.type == "cpu" else 2**16  # 4 GiB of a GPU: it reads half of one in the time of ten launches
    buffer = torch.ones(rows, 2**14, device=device)
    vector = torch.ones(2**14, device=device)
    reads: list[Callable[[], Tensor]] = [buffer.sum, lambda: torch.mv(buffer, vector)]
    if device.type == "cuda":
        source, target = buffer.chunk(2)
        reads.append(lambda: target.copy_(source))
    if device.type == "cpu" and torch.get_num_threads() == 1 and native_code(torch.float32):
        product = NativeLinear(buffer)
        reads.append(lambda: product(vector[None]))
    return buffer.nbytes / min(seconds_of(read, device) for read in reads)


@torch.inference_mode()
def agreement(wide: DnDTransformer, narrow: DnDTransformer) -> float:
    """Share of the places of an image where both models' likeliest codes are the same."""
    classes = torch.zeros(1, dtype=torch.int64, device=wide.tok_embeddings.weight.device)
    codes = sample_codes(narrow, classes)
    assert isinstance(codes, Tensor)
    return float((wide(codes, classes).argmax(-1) == narrow(codes, classes).argmax(-1)).float().mean())


def authors_sampler(path: Path, model: DnDTransformer, guidance: float, greedy: bool = False) -> Callable[..., Tensor]:
    """Return the authors' own sampler from a checkout, over the same weights.

    Returns:
        A function of classes [B] that returns codes [B, L, D].

    Raises:
        ValueError: the checkout lacks it.
    """
    if not (path / "src/dnd_transformer/generate_multitoken_v3.py").is_file():
        raise ValueError(
            f"--reference {path}: no src/dnd_transformer/generate_multitoken_v3.py there; give a checkout of "
            "https://github.com/chenllliang/DnD-Transformer"
        )
    sys.path.insert(0, str(path / "src"))
    network = importlib.import_module("dnd_transformer.gpt_multitoken_v3")
    loop = importlib.import_module("dnd_transformer.generate_multitoken_v3")
    config = model.config
    weight = model.tok_embeddings.weight
    arguments = network.ModelArgs(
        dim=config.dim,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        num_classes=config.num_classes,
        class_dropout_prob=config.class_dropout,
        vocab_size=config.codebook_size,
        block_size=config.num_positions,
        num_pred_heads=config.depth,
        pred_head_positions=list(config.head_layers),
    )
    theirs = network.Transformer(arguments).to(weight.device, weight.dtype).eval()
    theirs.load_state_dict(model.state_dict())
    return lambda classes: loop.generate(
        theirs,
        classes,
        config.num_positions,
        num_prediction_heads=config.depth,
        cfg_scale=guidance,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        sample_logits=not greedy,
    )


@torch.inference_mode()
def plain_sample(model: DnDTransformer, classes: Tensor, guidance: float) -> Tensor:
    """Draw codes int64 [B, L, D] by multinomial: each position attends to the whole cache under a mask."""
    config = model.config
    guided = guidance != 1
    h = model.cls_embedding(torch.cat([classes, torch.full_like(classes, config.num_classes)]) if guided else classes)
    shape = (2, len(h), config.num_heads, config.num_positions, config.dim // config.num_heads)
    caches = [h.new_zeros(shape) for _ in range(config.num_layers)]
    codes = list[Tensor]()
    cosine, sine = rotary_factors(config, h.device)

    def head(depth: int, hidden: Tensor) -> Tensor:
        logits = model.output[depth](hidden)[:, 0]
        if guided:
            condition, free = logits.chunk(2)
            logits = free + (condition - free) * guidance
        drawn = torch.multinomial(logits.softmax(-1), 1)
        codes.append(drawn)
        return torch.cat([drawn, drawn]) if guided else drawn

    for position in range(config.num_positions):
        attentions = [_attend(cache, position) for cache in caches]
        model.run_layers(h, (cosine[position : position + 1], sine[position : position + 1]), head, attentions)
        last = torch.cat(codes[-config.depth :], dim=1)
        h = model.tok_embeddings(torch.cat([last, last]) if guided else last).sum(1, keepdim=True)
    return torch.cat(codes, dim=1).unflatten(1, (config.num_positions, config.depth))


def _attend(cache: Tensor, position: int) -> Attend:
    mask = torch.arange(cache.shape[3], device=cache.device)[None] <= position

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache[0, :, :, position], cache[1, :, :, position] = k[:, 0], v[:, 0]
        return F.scaled_dot_product_attention(q.transpose(1, 2), cache[0], cache[1], mask).transpose(1, 2)

    return attend
