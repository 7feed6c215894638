"""The DeepSpeed engine of a run: configuration from the spec over infra/deepspeed/zeroN.json, model, AdamW."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from data_specs import storage
from data_specs.spec import Spec
from train.model import DnDTransformer, TransformerConfig

CONFIGS = Path(__file__).resolve().parent.parent / "infra" / "deepspeed"


def config_of(spec: Spec) -> TransformerConfig:
    """The model's configuration from the spec."""
    part = spec.transformer
    layers, heads, width = part.dimensions
    return TransformerConfig(
        num_layers=layers,
        num_heads=heads,
        dim=width,
        codebook_size=spec.shape.codebook_size,
        grid=spec.shape.grid,
        head_layers=part.head_layers,
        num_classes=part.num_classes,
        class_dropout=part.class_dropout,
        token_dropout=part.token_dropout,
        residual_dropout=part.residual_dropout,
        ffn_dropout=part.ffn_dropout,
        activation_checkpointing=spec.train.activation_checkpointing,
    )


def micro_batch_of(spec: Spec, world: int) -> int:
    """Images a rank takes at a time. Raises ValueError where the batch does not divide into them."""
    batch, micro = spec.train.batch_size, spec.train.micro_batch_size or spec.train.batch_size // world
    if micro < 1 or batch % (micro * world):
        fitting = [n for n in range(1, batch + 1) if batch % (n * world) == 0]
        remedy = f"use one of {fitting}" if fitting else f"use a number of ranks that divides {batch}"
        raise ValueError(
            f"train.batch_size {batch} does not divide into micro batches of {micro} on {world} ranks: {remedy}"
        )
    return micro


def deepspeed_config(spec: Spec, world: int) -> dict[str, Any]:
    """The whole DeepSpeed configuration: infra/deepspeed/zeroN.json and what the spec says.

    bfloat16 at stage 0 runs as stage 1: DeepSpeed's stage 0 learns measurably worse in it.
    """
    part = spec.train
    stage = max(part.zero_stage, 1) if part.dtype == "bfloat16" else part.zero_stage
    config: dict[str, Any] = json.loads((CONFIGS / f"zero{stage}.json").read_text())
    config["train_batch_size"] = part.batch_size
    config["train_micro_batch_size_per_gpu"] = micro_batch_of(spec, world)
    config["gradient_clipping"] = part.clip
    config["bf16"] = {"enabled": part.dtype == "bfloat16"}
    if part.offload_optimizer and stage:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return config


def build_engine(spec: Spec, root: str, world: int) -> Any:
    """The engine around a model with its initial weights: drawn from the seed, or those of train.init_from."""
    config = deepspeed_config(spec, world)
    partitioned = spec.train.zero_stage == 3
    torch.manual_seed(spec.seed)
    with deepspeed.zero.Init(config_dict_or_path=config) if partitioned else nullcontext():
        model = DnDTransformer(config_of(spec))
    if spec.train.init_from:
        _fill(model, storage.join(root, spec.train.init_from))
    optimizer = torch.optim.AdamW(
        parameter_groups(model, spec.train.weight_decay),
        lr=spec.train.learning_rate,
        betas=spec.train.betas,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if spec.train.compile:
        engine.compile()
    return engine


def _fill(model: nn.Module, folder: str) -> None:
    """Copies the weights of a transformer folder into the model, parameter by parameter where they are partitioned."""
    from train.weights import load_transformer

    given = dict(load_transformer(storage.local_folder(folder)).named_parameters())
    for name, parameter in model.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if name not in given or given[name].shape != shape:
            raise ValueError(
                f"train.init_from {folder}: {name} is not {list(shape)} there: make the spec agree with it"
            )
        whole = deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)
        with whole if hasattr(parameter, "ds_id") else nullcontext(), torch.no_grad():
            if parameter.numel():
                parameter.copy_(given[name])


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for tensors of two or more dimensions, none for the others."""
    dimensions = lambda p: len(getattr(p, "ds_shape", p.shape))  # noqa: E731
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if dimensions(p) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if dimensions(p) < 2], "weight_decay": 0.0},
    ]


def before_step(engine: Any) -> None:
    """What float32 at stage 0 lacks of the other stages: the gradient's norm, and no step where it is not finite."""
    if engine.zero_optimization_stage() or not engine.is_gradient_accumulation_boundary():
        return
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    engine.plain_norm = torch.stack([p.grad.norm() for p in parameters]).norm().item()
    if not math.isfinite(engine.plain_norm):
        for parameter in parameters:
            parameter.grad = None  # AdamW passes over parameters without gradient


def was_applied(engine: Any) -> bool:
    """Whether the last step changed the weights, on every rank alike; a gradient that is not finite skips it."""
    return bool(engine.was_step_applied()) and math.isfinite(getattr(engine, "plain_norm", 0.0))


def grad_norm(engine: Any) -> float:
    """Norm of the last step's gradient before clipping."""
    norm = engine.get_global_grad_norm()
    return float(getattr(engine, "plain_norm", math.nan) if norm is None else norm)
