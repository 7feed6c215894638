"""What stages take of a GPU's memory, and the batches that fit.

dnd memory SPEC --stage train --gpus 8 --memory 80GB

The transformer's activations are counted as the tensors that the model's backward keeps, in bytes a position of
bfloat16 (C width, F hidden width; dropout masks 2·C more):

    eager on a CPU    norms 2·(4 + 2 + 2)·C, queries, keys, values 6·C, rotated 4·C, attention out 2·C, feed-forward 8·F
    fused on a GPU    the same, norms 2·(2 + 2)·C, feed-forward 6·F: kernels keep what they read, not what lies between
    compiled          one of the norms' results less: it is computed again

float32 doubles all but the norms' 4 and the masks. Predictions are 0.96 to 1.00 times the peaks that the kernel counted
on a CPU (stages 0 to 3, one and two ranks: test_memory.py), where gloo adds its own copies of what travels, and 1.01
times (compiled 0.99) that of an H200: 54.9 GB for XXL with 32 images at stage 2 in bfloat16. Tokenizer and encoding are
counted by running their steps on tensors without bytes (tokenize_jobs/memory.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from data_specs.spec import Spec
from tokenize_jobs import networks
from tokenize_jobs.device import largest_fitting, powers_of_two
from tokenize_jobs.memory import Needs, encoding_needs, fitting_compute_batch, training_needs
from train.flops import layer_weights, num_parameters
from train.kernels import LOSS_CHUNK
from train.model import TransformerConfig, config_of

BUCKET = 50_000_000  # elements, of infra/deepspeed/zeroN.json
MAX_LIVE = 1_000_000_000  # elements that stage 3 keeps gathered
STAGES = (0, 1, 2, 3)
SAMPLED = 256  # images at a time up to which sampling on a GPU gains

Parts = dict[str, float]  # bytes by part
Kernels = Literal["eager", "fused", "compiled"]


def kernels_on_gpus(spec: Spec) -> Kernels:
    """Return how the layers of a training run on GPUs."""
    return "fused" if spec.train.zero_stage == 3 or spec.train.compile is False else "compiled"


def predict(spec: Spec, gpus: int, micro: int, kernels: Kernels = "eager") -> Parts:
    """Predict the bytes of one GPU by part; `total` is the peak of a step.

    That is where backward begins or where the optimizer steps, whichever takes more. In float32 gradients come as
    activations go; in bfloat16 they add up in float32, in memory that DeepSpeed takes as a whole as backward begins,
    and stage 3 as the engine is built. Stage 3 also gathers weights, unless one GPU has all of them.
    """
    config = config_of(spec)
    parameters = num_parameters(config)
    dtype = _on_gpus(spec.train.dtype)
    low = 4 if dtype == "float32" else 2
    stage = zero_stage(spec, dtype)
    share = parameters / gpus if stage else parameters
    on_cpu = spec.train.offload_optimizer and stage > 0
    momenta = 4 * layer_weights(config) if spec.train.optimizer == "muon" else 0  # of all ranks, gathered
    gathered = min(parameters, MAX_LIVE) if stage == 3 and gpus > 1 else 0
    parts: Parts = {
        "weights": low * ((parameters / gpus if stage == 3 else parameters) + gathered),
        "gradients": 4 * (parameters if stage < 2 else share),  # they add up and travel in float32
        "buckets": 4 * min(2 * BUCKET, parameters) if stage else 0,
        "master weights": 0 if on_cpu or not stage else 4 * share,
        "moments": 0 if on_cpu else moments_bytes(spec, config) * share / parameters,
        "moving average": 0 if on_cpu else 4 * share,
        "step": 0 if on_cpu or not stage else 4 * share + momenta,
        "activations": activation_bytes(config, low, kernels) * micro,
        "logits": loss_bytes(config, low, micro),
    }
    forward = parts["activations"] + parts["logits"]
    after_forward = parts["step"]
    if low == 4 and stage < 3:
        after_forward += parts["gradients"] + parts["buckets"]
    return {**parts, "total": sum(parts.values()) - min(forward, after_forward)}


def zero_stage(spec: Spec, dtype: str) -> int:
    """Return the ZeRO stage of a training in a type: in bfloat16 DeepSpeed's stage 0 learns measurably worse than 1."""
    return max(spec.train.zero_stage, 1) if dtype == "bfloat16" else spec.train.zero_stage


def _on_gpus(dtype: str | None) -> str:
    """Return the working type that a section's `dtype` means on GPUs."""
    return "bfloat16" if dtype in (None, "auto") else dtype


def moments_bytes(spec: Spec, config: TransformerConfig) -> int:
    """Count the bytes of the optimizer's moments of all parameters: two a parameter, one for those that Muon steps."""
    of_muon = layer_weights(config) if spec.train.optimizer == "muon" else 0
    return 8 * num_parameters(config) - 4 * of_muon


def activation_bytes(config: TransformerConfig, low: int, kernels: Kernels = "eager") -> float:
    """Count the bytes that backward keeps of one image: `low` 2 for bfloat16, 4 for float32."""
    c = config.dim
    f = config.ffn_dim
    norm = (4 + 2 * low if kernels == "eager" else 2 * low) * c  # float32 input, its scaled form, the output
    masks = (bool(config.residual_dropout) + bool(config.ffn_dropout)) * c
    products = (4 if kernels == "eager" else 3) * low * f
    layer = 2 * norm + 6 * low * c + products + 4 * config.num_heads + masks
    layer -= low * c if kernels == "compiled" else 0
    kept = math.floor(config.num_layers * config.activation_checkpointing)
    layers = (config.num_layers - kept) * layer + kept * low * c + (layer if kept else 0)
    heads = config.depth * (norm + 2 * low * c)
    return config.num_positions * float(layers + heads + 2 * low * c)


def loss_bytes(config: TransformerConfig, low: int, micro: int) -> float:
    """Count the bytes of the loss: gradients of the output weights, kept from forward on, and one chunk of logits."""
    weight = config.codebook_size * config.dim
    chunk = min(LOSS_CHUNK, micro * config.num_positions * config.codebook_size)
    return float(low * config.depth * weight + 4 * weight + 8 * chunk)


def fitting_micro_batch(spec: Spec, gpus: int, memory: float) -> int | None:
    """Return the largest part of a rank's batch that should fit into `memory` bytes of a GPU; None if not one image."""
    share = spec.train.batch_size // gpus
    kernels = kernels_on_gpus(spec)
    sizes = [n for n in range(share, 0, -1) if share % n == 0]
    return largest_fitting(sizes, lambda n: predict(spec, gpus, n, kernels)["total"], memory)


# ---- sampling ------------------------------------------------------------------------------------------------------
def predict_sampling(spec: Spec, batch: int) -> Parts:
    """Predict the bytes of one GPU by part while it samples `batch` images at a time."""
    config = config_of(spec)
    low = 4 if spec.sample.dtype == "float32" else 2
    rows = spec.sample.num_rows(batch)
    parts: Parts = {
        "weights": low * num_parameters(config),
        "keys and values": 2 * low * rows * config.num_layers * config.num_positions * config.dim,
        "a head's logits": 20 * rows * config.codebook_size,  # float32, their noise, what filters them
        "graphs": 64 * rows * config.dim * math.ceil(config.num_positions / 32),
    }
    return {**parts, "total": sum(parts.values())}


def fitting_sample_batch(spec: Spec, memory: float) -> int:
    """Return the largest power of two of images, 1 … SAMPLED, that should fit into `memory` bytes of a GPU."""
    return largest_fitting(powers_of_two(SAMPLED), lambda n: predict_sampling(spec, n)["total"], memory) or 1


# ---- what is printed -----------------------------------------------------------------------------------------------
def parse_bytes(text: str) -> float:
    """Read the bytes of a size such as 80GB, 40 GiB or 24e9.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e\d\d?)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match:
        raise ValueError(f"--memory {text}: give a size such as 80GB or 40GiB")
    return float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")


def table(spec: Spec, gpus: int, memory: float) -> list[str]:
    """Return lines to print: memory by part for each stage with the micro batch that fits."""
    if spec.train.batch_size % gpus:
        raise ValueError(f"train.batch_size {spec.train.batch_size} does not divide over {gpus} GPUs")
    specs = [spec.changed("train", zero_stage=stage) for stage in STAGES]
    fitting = [fitting_micro_batch(of_stage, gpus, memory) for of_stage in specs]
    columns = [predict(s, gpus, n or 1, kernels_on_gpus(s)) for s, n in zip(specs, fitting, strict=True)]
    dtype = _on_gpus(spec.train.dtype)
    about = f"{num_parameters(config_of(spec)):,} parameters, {dtype}, {gpus} GPUs of {memory / 1e9:.0f} GB"
    rows = {part: _gigabytes(*(parts[part] for parts in columns)) for part in columns[0]}
    return [f"{about}; in GB:", *aligned({"ZeRO stage": STAGES, **rows, "micro batch": [n or "none" for n in fitting]})]


def sampling_table(spec: Spec, memory: float) -> list[str]:
    """Return lines to print: memory of sampling by part, with the batch that fits or the spec's."""
    batch = spec.sample.batch_size or fitting_sample_batch(spec, memory)
    dtype = _on_gpus(spec.sample.dtype)
    rows = {part: _gigabytes(size) for part, size in predict_sampling(spec, batch).items()}
    head = f"sampling in {dtype} on a GPU of {memory / 1e9:.0f} GB; in GB:"
    return [head, *aligned({**rows, "batch": [batch]})]


def tokenizer_table(spec: Spec, gpus: int, memory: float) -> list[str]:
    """Return lines to print: memory of the tokenizer's training, with the micro batch that fits or the spec's."""
    dtype = _on_gpus(spec.tokenizer.dtype)
    needs = training_needs(spec, gpus, getattr(torch, dtype))
    share = -(-spec.tokenizer.batch_size // gpus)
    micro = spec.tokenizer.micro_batch_size or largest_fitting(range(share, 0, -1), needs.of, memory)
    head = f"tokenizer in {dtype}, {gpus} GPUs of {memory / 1e9:.0f} GB, {share} images of a step each; in GB:"
    return [head, *aligned({**_rows_of(needs, micro or 0), "micro batch": [micro or "none"]})]


def encoding_table(spec: Spec, memory: float) -> list[str]:
    """Return lines to print: memory of encoding, with the batch that fits or the spec's."""
    config = networks.config_of(spec)
    dtype = getattr(torch, spec.tokenize.dtype)
    batch = spec.tokenize.compute_batch or fitting_compute_batch(config, dtype, memory)
    head = f"encoding in {spec.tokenize.dtype} on a GPU of {memory / 1e9:.0f} GB; in GB:"
    return [head, *aligned({**_rows_of(encoding_needs(config, dtype), batch), "compute batch": [batch]})]


def _rows_of(needs: Needs, images: int) -> dict[str, list[str]]:
    parts = {"networks and steps": needs.fixed, "an image": needs.image, "total": needs.of(images)}
    return {part: _gigabytes(size) for part, size in parts.items()}


def _gigabytes(*sizes: float) -> list[str]:
    return [f"{size / 1e9:.2f}" for size in sizes]


def aligned(rows: Mapping[str, Sequence[object]]) -> list[str]:
    """Return a line for each row of a table: its name and its cells."""
    return [f"{name:18}" + "".join(f"{cell!s:>9}" for cell in cells) for name, cells in rows.items()]
