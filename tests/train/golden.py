"""Steps of the engine on the golden batch and on fixed codes, as a rank of the tests takes them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from code_sets import tiny_spec
from safetensors.torch import save_file
from test_model import load_golden

from data_specs.records import CheckpointState
from data_specs.spec import Spec
from tokenize_jobs.checkpoint import CheckpointWriter
from tokenize_jobs.ema import MovingAverage
from tokenize_jobs.ranks import Ranks
from train import partition
from train.engine import build_engine, clip_at_stage_0, was_applied
from train.model import DnDTransformer, TransformerConfig, config_of

EPSILON = 1e-3  # AdamW's in the golden steps: with its usual 1e-8, the sign of a gradient near 0 moves a weight by 2 lr


def golden_spec(config: TransformerConfig, *overrides: str) -> Spec:
    """The tiny spec in the shape of a golden model, which training starts from."""
    shape = (
        f"shape={{image_size: 64, grid: {list(config.grid)}, depth: {config.depth}, "
        f"codebook_size: {config.codebook_size}}}"
    )
    transformer = (
        f"transformer={{num_layers: {config.num_layers}, num_heads: {config.num_heads}, width: {config.dim}, "
        f"head_layers: {list(config.head_layers)}, num_classes: {config.num_classes}, "
        f"class_dropout: {config.class_dropout}, token_dropout: 0, residual_dropout: 0, ffn_dropout: 0}}"
    )
    return tiny_spec(shape, transformer, "train.batch_size=4", "train.init_from=start", "train.clip=0.5", *overrides)


def golden_steps(root: str, golden: str, number: int) -> None:
    """Three steps of the engine on the golden batch, its moving average, and a step whose loss is not a number."""
    start, tensors = load_golden(golden)
    spec = golden_spec(start.config, f"train.zero_stage={number}")
    engine, mine = build_engine(spec, root, 2), slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    codes, classes = golden_batch(tensors)
    for group in engine.optimizer.param_groups:
        group["eps"] = EPSILON
    ema = MovingAverage(partition.master_weights(engine), 0.9)
    for step, factor in enumerate((1.0, 1.0, 1.0, torch.nan)):
        engine.backward(engine(codes[mine], classes[mine], return_loss=True).mean() * factor)
        clip_at_stage_0(engine, spec.train.clip)
        engine.step()
        assert was_applied(engine) == (factor == 1.0)
        if was_applied(engine):
            ema.update(step)
    writer = CheckpointWriter(f"{root}/out", Ranks(), 1, None)
    state = CheckpointState(step=3, position=12, world=2, files={})
    writer.start(state, partition.copy_pieces(engine, ema.averages))
    writer.commit()


def bfloat16_pieces(root: str, *overrides: str) -> None:
    """Two steps of two micro batches in bfloat16; every weight is found once, in float32, whatever holds it."""
    engine = build_engine(tiny_spec("train.dtype=bfloat16", "train.micro_batch_size=4", *overrides), root, 1)
    codes = torch.arange(4 * 32).remainder(16).view(4, 16, 2)
    for number in range(4):
        engine.backward(engine(codes, codes[:, 0, 0] * 0, return_loss=True).mean())
        engine.step()
        if number == 2:  # the first of the second step: it has not been reduced yet
            sums = [getattr(p, "grad_accum", None) for p in engine.module.parameters()]
            assert all(total is None or total.dtype == torch.float32 for total in sums)
    found = partition.copy_pieces(engine, MovingAverage(partition.master_weights(engine), 0.9).averages)
    for name, parameter in engine.module.named_parameters():
        parts = [found[f"weight/{p.name}/{p.start}"] for p in partition.pieces(engine) if p.name == name]
        assert all(part.dtype == torch.float32 for part in parts)
        assert torch.equal(torch.cat(parts).bfloat16(), parameter.detach().flatten()), name
    assert partition.optimizer_steps(engine) == 2
    Path(root, "optimizer").write_text(type(engine.optimizer).__name__)


def golden_batch(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The golden samples and the first of them once more: two for each rank."""
    return tensors["codes"][[0, 1, 2, 0]], tensors["cond"][[0, 1, 2, 0]]


def fixed_steps(root: str, *overrides: str) -> None:
    """Two steps of the engine on fixed codes, then a loss that is not a number; the losses go to ROOT/losses.json."""
    spec = tiny_spec(*overrides)
    engine = build_engine(spec, root, 1)
    codes, classes = torch.arange(8 * 32).remainder(16).view(8, 16, 2), torch.zeros(8, dtype=torch.int64)
    losses = []
    for factor in (1.0, 1.0, torch.inf, 1.0):
        torch.manual_seed(0)
        loss = engine(codes, classes, return_loss=True).mean()
        losses.append(loss.item())
        engine.backward(loss * factor)
        clip_at_stage_0(engine, spec.train.clip)
        engine.step()
        assert was_applied(engine) == (factor == 1.0)
    Path(root, "losses.json").write_text(json.dumps(losses))


def start_with_other_classes(root: str) -> None:
    """An engine of seven classes from a transformer of three; what differs goes to ROOT/differs.json."""
    start = DnDTransformer(config_of(tiny_spec()))
    Path(root, "start").mkdir()
    save_file(
        {name: torch.full_like(t, 0.5) for name, t in start.state_dict().items()}, f"{root}/start/ema.safetensors"
    )
    engine = build_engine(tiny_spec("transformer.num_classes=7", "train.init_from=start"), root, 1)
    differs = [name for name, p in engine.module.named_parameters() if not (p == 0.5).all()]
    Path(root, "differs.json").write_text(json.dumps(differs))
