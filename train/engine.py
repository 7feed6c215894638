"""The DeepSpeed engine of a run: configuration from the spec over infra/deepspeed/zeroN.json, model, AdamW."""

from __future__ import annotations

import io
import json
import math
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from data_specs import storage
from data_specs.spec import Spec, laid_over
from tokenize_jobs.checkpoint import newest_state
from tokenize_jobs.device import memory_of
from tokenize_jobs.ranks import Ranks
from train.memory import fitting_micro_batch, zero_stage
from train.model import DnDTransformer, config_of
from train.muon import Muon
from train.weights import EMA_WEIGHTS, open_weights

HONOURED = {  # what a user may add: nothing that changes which rank holds what, or in which type gradients add up
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "steps_per_print", "dump_state"),
    *("wall_clock_breakdown", "memory_breakdown", "flops_profiler", "comms_logger"),
    *("zero_optimization.reduce_bucket_size", "zero_optimization.allgather_bucket_size"),
    *("zero_optimization.allgather_partitions", "zero_optimization.reduce_scatter", "zero_optimization.overlap_comm"),
    *("zero_optimization.contiguous_gradients", "zero_optimization.use_multi_rank_bucket_allreduce"),
    *("zero_optimization.stage3_max_live_parameters", "zero_optimization.stage3_max_reuse_distance"),
    *("zero_optimization.stage3_prefetch_bucket_size", "zero_optimization.stage3_param_persistence_threshold"),
}
CLASSES = "cls_embedding.embedding_table.weight"
CONFIGS = Path(__file__).resolve().parent.parent / "infra" / "deepspeed"


def micro_batch_of(spec: Spec, world: int) -> int:
    """Return the images that a rank takes at a time: the spec's, else all of its share.

    Raises:
        ValueError: the batch does not divide into them.
    """
    batch = spec.train.batch_size
    micro = spec.train.micro_batch_size or max(spec.train.batch_size // world, 1)
    if batch % (micro * world):
        fitting = [n for n in range(1, batch + 1) if batch % (n * world) == 0]
        remedy = f"use one of {fitting}" if fitting else f"use a number of ranks that divides {batch}"
        raise ValueError(
            f"train.batch_size {batch} does not divide into train.micro_batch_size {micro} on {world} ranks: {remedy}"
        )
    return micro


def settle_micro_batch(spec: Spec, ranks: Ranks, device: torch.device) -> Spec:
    """Return the spec with a micro batch: its own, else on GPUs what should fit into the least of all ranks' memories.

    Raises:
        ValueError: not one image fits.
    """
    memory = min(ranks.gather(memory_of(device)))
    if spec.train.micro_batch_size or device.type == "cpu" or spec.train.batch_size % ranks.world:
        return spec
    micro = fitting_micro_batch(spec, ranks.world, memory)
    if micro is None:
        raise ValueError(
            f"train: one image does not fit into {memory / 1e9:.0f} GB on {ranks.world} ranks (`dnd memory` says why): "
            "raise train.zero_stage or train.activation_checkpointing, or take more GPUs"
        )
    return spec.changed("train", micro_batch_size=micro)


def deepspeed_config(spec: Spec, world: int, user: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the whole DeepSpeed configuration: infra/deepspeed/zeroN.json, what the user adds, and what the spec says.

    Raises:
        ValueError: names a key in which the user's part contradicts the spec.
    """
    section = spec.train
    stage = zero_stage(spec, section.dtype)
    micro = micro_batch_of(spec, world)
    owned: dict[str, Any] = {
        "train_batch_size": section.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": section.batch_size // (micro * world),
        "gradient_clipping": section.clip,
        "bf16": {"enabled": section.dtype == "bfloat16"},
        "zero_optimization": {"stage": stage},
    }
    if section.dtype == "bfloat16":  # 8 bits of a sum of 64 gradients would be rounded away
        owned["data_types"] = {"grad_accum_dtype": "fp32"}
    if section.offload_optimizer and stage:
        owned["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    _refuse_contradictions(user or {}, owned | dict.fromkeys(("optimizer", "scheduler", "fp16", "amp")))
    base = json.loads((CONFIGS / f"zero{stage}.json").read_text())
    clipped = {} if stage else {"gradient_clipping": 0.0}  # see clip_at_stage_0
    return laid_over(laid_over(base, user or {}), owned | clipped)


def _refuse_contradictions(user: dict[str, Any], owned: dict[str, Any], prefix: str = "") -> None:
    for key, value in user.items():
        if isinstance(value, dict) and isinstance(owned.get(key), dict):
            _refuse_contradictions(value, owned[key], f"{prefix}{key}.")
        elif key not in owned and prefix + key not in HONOURED:
            raise ValueError(
                f"--deepspeed_config: {prefix}{key} is not a key that this training can honour: leave it out; these "
                f"are: {', '.join(sorted(HONOURED))}"
            )
        elif key in owned and value != owned[key]:
            raise ValueError(
                f"--deepspeed_config: {prefix}{key} is the spec's to say, and it says {json.dumps(owned[key])}: "
                "leave the key out, and change the spec (see `train:` there) if that is what you want"
            )


def read_user_config(path: str | None) -> dict[str, Any]:
    """Read a user's DeepSpeed configuration.

    Raises:
        ValueError: it is no JSON object; the message names the file.
    """
    if path is None:
        return {}
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--deepspeed_config {path}: cannot be read ({error}): give a JSON file") from None
    if not isinstance(config, dict):
        raise ValueError(f"--deepspeed_config {path}: holds no JSON object")
    return config


def join_engine() -> None:
    """Let DeepSpeed use the process group that the ranks have joined."""
    for name in ("deepspeed_shm_comm", "deepspeed_ccl_comm"):  # built at start by a compiler; gloo serves a CPU as well
        deepspeed.ops.__compatible_ops__[name] = False
    deepspeed.init_distributed(verbose=False)


def build_engine(spec: Spec, root: str, world: int, user: dict[str, Any] | None = None) -> deepspeed.DeepSpeedEngine:
    """Build the engine around a model with its initial weights: drawn from the seed, or those of train.init_from.

    Args:
        user: a DeepSpeed configuration that adds to the spec's (see `deepspeed_config`).
    """
    config = deepspeed_config(spec, world, user)
    join_engine()
    torch.manual_seed(spec.seed)
    with deepspeed.zero.Init(config_dict_or_path=config) if spec.train.zero_stage == 3 else nullcontext():
        model = DnDTransformer(config_of(spec))
    if spec.train.init_from:
        start = storage.join(root, spec.train.init_from)
        if storage.exists(storage.join(start, EMA_WEIGHTS)) or not newest_state(storage.join(root, "transformer")):
            _fill(model, start)  # once there is a checkpoint, they may be gone
    optimizer = build_optimizer(model, spec)
    with redirect_stdout(io.StringIO()):  # in bfloat16 DeepSpeed prints the memory before and after each group
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if world == 1 and not engine.zero_optimization_stage():
        engine.enable_backward_allreduce = False  # it would copy all gradients to and fro: a quarter of a small step
    if isinstance(optimizer, Muon):
        optimizer.attach(engine)
    if compiles(spec, engine.device):
        compile_layers(engine.module)
    return engine


def compile_layers(model: DnDTransformer, backend: str = "inductor") -> None:
    """Compile each layer: all share one graph, where a whole model would be traced layer by layer."""
    for layer in model.layers:
        layer.compile(fullgraph=True, dynamic=False, backend=backend)


def compiles(spec: Spec, device: torch.device) -> bool:
    """Return whether layers are compiled: as the spec says, else on GPUs at the stages where a layer is one graph."""
    by_default = device.type == "cuda" and spec.train.zero_stage < 3
    return by_default if spec.train.compile is None else spec.train.compile


@torch.no_grad()
def _fill(model: nn.Module, folder: str) -> None:
    """Copy the weights of a transformer folder into the model, tensor by tensor, whole or partitioned.

    Where the number of classes differs, the class embedding starts anew.
    """
    with open_weights(folder, ema=True) as given:
        shapes = {name: tuple(given.get_slice(name).get_shape()) for name in given.keys()}  # noqa: SIM118
        for name, parameter in model.named_parameters():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            if name == CLASSES and shapes.get(name, ())[:1] != shape[:1]:
                continue
            if shapes.get(name) != shape:
                raise ValueError(
                    f"train.init_from {folder}: {name} is not {list(shape)} there: make the spec agree with it"
                )
            whole = deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)
            with whole if hasattr(parameter, "ds_id") else nullcontext():
                if parameter.numel():
                    parameter.copy_(given.get_tensor(name))


def whole_model(engine: deepspeed.DeepSpeedEngine) -> DnDTransformer:
    """Return the engine's model with its present weights whole on every rank: itself, at stage 3 a copy; collective."""
    if engine.zero_optimization_stage() < 3:
        return engine.module
    state = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter):
            state[name] = parameter.detach().clone()
    return DnDTransformer.of_state(engine.module.config, state)


def build_optimizer(model: nn.Module, spec: Spec) -> torch.optim.AdamW:
    """Build the spec's optimizer over a model's parameters."""
    section = spec.train
    muon = section.optimizer == "muon"
    groups = parameter_groups(model, section.weight_decay, muon)
    return (Muon if muon else torch.optim.AdamW)(groups, lr=section.learning_rate, betas=section.betas, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float, muon: bool = False) -> list[dict[str, Any]]:
    """Group parameters: weight decay for two or more dimensions, none for the others; the layers' matrices for Muon."""
    matrices: dict[str, Any] = {"params": [], "weight_decay": weight_decay, "muon": True}
    wide: dict[str, Any] = {"params": [], "weight_decay": weight_decay, "muon": False}
    narrow: dict[str, Any] = {"params": [], "weight_decay": 0.0, "muon": False}
    for name, parameter in model.named_parameters():
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        group = wide if dimensions >= 2 else narrow
        if muon and name.startswith("layers.") and dimensions == 2:
            group = matrices
        group["params"].append(parameter)
    return [matrices, wide, narrow] if muon else [wide, narrow]


def clip_at_stage_0(engine: deepspeed.DeepSpeedEngine, clip: float) -> None:
    """Do what float32 at stage 0 lacks of the other stages: take the gradient's norm, make no step if it is not finite.

    Clip as well, since DeepSpeed's own clipping there takes the norm a second time and fails where no step is due.
    """
    if engine.zero_optimization_stage() or not engine.is_gradient_accumulation_boundary():
        return
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    engine.plain_norm = norm.item()
    if math.isfinite(engine.plain_norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        return
    for parameter in parameters:
        parameter.grad = None  # AdamW passes over parameters without gradient


def was_applied(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Return whether the last step changed the weights, on every rank alike; a gradient that is not finite skips it."""
    return bool(engine.was_step_applied()) and math.isfinite(getattr(engine, "plain_norm", 0.0))


def grad_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """Return the norm of the last step's gradient before clipping."""
    norm = engine.get_global_grad_norm()
    return float(getattr(engine, "plain_norm", math.nan) if norm is None else norm)
