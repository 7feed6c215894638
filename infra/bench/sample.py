"""Sampling: our decoder against the plain eager loop, the published algorithm over a cache of full length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from data_specs.spec import load_spec
from infra.bench.rounds import Comparison, compare
from train.engine import config_of
from train.model import Attend, DnDTransformer, TransformerConfig, rotary_factors
from train.sampling import sample_codes


def sample(preset: str, rounds: int, batch: int, guidance: float, overrides: list[str]) -> Comparison:
    """Images/s at the given batch; the same random weights, dtype, guidance and temperature 1 for both."""
    torch.manual_seed(0)
    model = DnDTransformer(config_of(load_spec(preset, overrides))).eval()
    for output in model.output.parameters():
        torch.nn.init.normal_(output, std=0.02)  # they start at zero, which no trained model has
    classes = torch.zeros(batch, dtype=torch.int64)
    return compare(
        lambda: len(sample_codes(model, classes, guidance=guidance)),
        lambda: len(plain_sample(model, classes, guidance)),
        rounds,
    )


@torch.inference_mode()
def plain_sample(model: DnDTransformer, classes: Tensor, guidance: float) -> Tensor:
    """Codes int64 [B, L, D]: each position attends to the whole cache under a mask, codes drawn by multinomial."""
    config, guided = model.config, guidance != 1
    h = model.cls_embedding(torch.cat([classes, torch.full_like(classes, config.num_classes)]) if guided else classes)
    caches, codes = _caches(config, len(h)), list[Tensor]()
    cosine, sine = rotary_factors(config, "cpu")

    def head(depth: int, hidden: Tensor) -> Tensor:
        logits = model.output[depth](hidden)[:, 0]
        if guided:
            condition, free = logits.chunk(2)
            logits = free + (condition - free) * guidance
        drawn = torch.multinomial(logits.softmax(-1), 1)
        codes.append(drawn)
        return torch.cat([drawn, drawn]) if guided else drawn

    for position in range(config.num_positions):
        attends = [_attend(cache, position) for cache in caches]
        model.walk(h, (cosine[position : position + 1], sine[position : position + 1]), head, attends)
        last = torch.cat(codes[-config.depth :], dim=1)
        h = model.tok_embeddings(torch.cat([last, last]) if guided else last).sum(1, keepdim=True)
    return torch.cat(codes, dim=1).unflatten(1, (config.num_positions, config.depth))


def _caches(config: TransformerConfig, rows: int) -> list[Tensor]:
    shape = (2, rows, config.num_heads, config.num_positions, config.dim // config.num_heads)
    return [torch.zeros(shape) for _ in range(config.num_layers)]


def _attend(cache: Tensor, position: int) -> Attend:
    mask = torch.arange(cache.shape[3])[None] <= position

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache[0, :, :, position], cache[1, :, :, position] = k[:, 0], v[:, 0]
        return F.scaled_dot_product_attention(q.transpose(1, 2), cache[0], cache[1], mask).transpose(1, 2)

    return attend
