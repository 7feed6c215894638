"""Sampling of codes from a DnD transformer: `sample_codes`, the one entry, and what it draws with.

    model = load_transformer("runs/demo/transformer")
    codes = sample_codes(model, [0] * 16, temperature=0.7, seed=1)

Image i draws from (seed, i) whatever the batch size, the order and the number of processes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from train.decoder import Decoder
from train.linear import packed
from train.model import DnDTransformer, TransformerConfig
from train.noise import code_keys, gumbel

PerDepth = float | Sequence[float]  # one number, or one per depth
Schedule = Literal["constant", "linear", "cosine"]
FREE = -1  # in `given`: a code to be sampled


@dataclass(frozen=True)
class Settings:
    """How codes are chosen; tuples hold one number per depth."""

    temperature: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    guided: bool
    likelihood: bool


def sample_codes(
    model: DnDTransformer,
    classes: Tensor | Sequence[int],
    *,
    guidance: PerDepth = 1.0,
    temperature: PerDepth = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: PerDepth = 1.0,
    seed: int = 0,
    first_index: int = 0,
    guidance_schedule: Schedule = "constant",
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    given: Tensor | None = None,
    return_log_likelihood: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sample an image's codes for each class; row j draws from (seed, first_index + j).

    Args:
        model: what predicts them; its mode, training or not, makes no difference and stays.
        classes: int [B].
        guidance: logits = uncond + (cond - uncond) · guidance; 1 is none, 0 leaves the class out. Like temperature,
            top_k and top_p a number or one per depth.
        temperature: what logits are divided by; 0 is greedy.
        top_k: draw from the k likeliest codes; 0: all. It goes before top_p.
        top_p: draw from the likeliest codes that make up this share; 1: all.
        guidance_schedule: how guidance rises from 1 at the first position to its full value at the last.
        guidance_interval: shares of the positions, in raster order, outside of which guidance is 1.
        given: codes [B, L, D], FREE (-1) where to sample: inpainting, or completing coarse codes.
        return_log_likelihood: return also log p(codes | class) under the plain conditional model (no guidance,
            temperature 1, no filter), given codes included.

    Returns:
        Codes [B, L, D] int64 on the model's device; with return_log_likelihood beside them nats, float64 [B].

    Raises:
        ValueError: classes or options that the model or the mathematics cannot take.
    """
    config = model.config
    classes = _checked_classes(classes, config).to(model.tok_embeddings.weight.device)
    given = _checked_given(given, len(classes), config)
    scales = guidance_scales(config, guidance, guidance_schedule, guidance_interval)
    settings = Settings(
        temperature=_per_depth("temperature", temperature, config.depth, 0.0),
        top_k=tuple(int(k) for k in _per_depth("top_k", top_k, config.depth, 0)),
        top_p=_per_depth("top_p", top_p, config.depth, 0.0, 1.0),
        guided=bool((scales != 1).any()),
        likelihood=return_log_likelihood,
    )
    images = torch.arange(first_index, first_index + len(classes), device=classes.device)
    keys = code_keys(seed, images, config.num_positions, config.depth)
    with torch.no_grad() if model.training else torch.inference_mode():
        codes, likelihood = _sampler_for(model, len(classes), settings).run(classes, scales, keys, given)
    return (codes.clone(), likelihood.clone()) if return_log_likelihood else codes.clone()


def sample_best(
    model: DnDTransformer,
    classes: Tensor | Sequence[int],
    *,
    candidates: int,
    keep: int = 1,
    first_index: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Sample several images for each class, of which the likeliest are kept.

    Args:
        candidates: images drawn for each class; candidate c of row j draws from (seed, (first_index + j) · candidates
            + c).
        keep: images kept for each class.
        options: those of sample_codes.

    Returns:
        Codes [B, keep, L, D] and log-likelihoods [B, keep], best first.

    Raises:
        ValueError: as sample_codes, and for more images to keep than are drawn.
    """
    if not 1 <= keep <= candidates:
        raise ValueError(f"keep {keep} must be in 1..candidates ({candidates})")
    classes = torch.as_tensor(classes).repeat_interleave(candidates)
    codes, likelihood = sample_codes(
        model, classes, first_index=first_index * candidates, return_log_likelihood=True, **options
    )
    likelihood, best = likelihood.view(-1, candidates).topk(keep)
    codes = codes.unflatten(0, (-1, candidates))
    return torch.stack([row[chosen] for row, chosen in zip(codes, best, strict=True)]), likelihood


def guidance_scales(
    config: TransformerConfig, guidance: PerDepth, schedule: Schedule, interval: tuple[float, float]
) -> Tensor:
    """Return the guidance scale of every position and depth, float32 [L, D]."""
    full = torch.tensor(_per_depth("guidance", guidance, config.depth, 0.0), dtype=torch.float32)
    if (full != 1).any() and not config.class_dropout:
        raise ValueError(
            f"guidance {guidance} needs a model trained with class dropout, unlike this one: use guidance 1"
        )
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"guidance_interval {interval} must be two rising shares of the positions in 0..1")
    position = torch.linspace(0, 1, config.num_positions)
    shapes = {"constant": torch.ones_like(position), "linear": position, "cosine": (1 - (math.pi * position).cos()) / 2}
    if schedule not in shapes:
        raise ValueError(f"guidance_schedule {schedule!r} is unknown: use one of {', '.join(shapes)}")
    shape = torch.where((position >= interval[0]) & (position <= interval[1]), shapes[schedule], 0.0)
    return torch.lerp(torch.ones(()), full, shape[:, None])


class Sampler:
    """A decoder with the buffers that choosing codes needs; reused while model, batch size and settings stay."""

    def __init__(self, model: DnDTransformer, batch: int, settings: Settings) -> None:
        config = model.config
        device = model.tok_embeddings.weight.device
        self.held = _held_by_graphs(model)
        self.batch = batch
        self.settings = settings
        self.config = config
        rows = batch * (1 + settings.guided)
        fast = packed(model, rows)
        self.model = cast(DnDTransformer, weakref.proxy(model)) if fast is model else fast  # keeps no model alive
        self.decoder = Decoder(self.model, rows)
        self.vocabulary = torch.arange(config.codebook_size, dtype=torch.int32, device=device)
        self.scales = torch.ones(config.num_positions, config.depth, device=device)
        shape = (batch, config.num_positions, config.depth)
        self.keys = torch.zeros(*shape, 2, dtype=torch.int32, device=device)
        self.given = torch.zeros(shape, dtype=torch.int64, device=device)
        self.codes = torch.zeros(shape, dtype=torch.int64, device=device)
        self.likelihood = torch.zeros(shape, device=device)

    def run(self, classes: Tensor, scales: Tensor, keys: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Sample one batch; return codes [B, L, D], a buffer that the next batch overwrites, and likelihoods [B]."""
        for buffer, values in zip((self.scales, self.keys, self.given), (scales, keys, given), strict=True):
            buffer.copy_(values)
        no_class = torch.full_like(classes, self.config.num_classes)
        self.decoder.start(torch.cat([classes, no_class]) if self.settings.guided else classes)
        guided_until = int((scales != 1).any(1).nonzero().max()) if self.settings.guided else -1
        training = self.model.training
        self.model.eval()
        try:
            for position in range(self.config.num_positions):
                self.decoder.step(position, self.batch * (1 + (position <= guided_until)), self._pick)
        finally:
            self.model.train(training)
        return self.codes, self.likelihood.double().sum((1, 2))

    def _pick(self, hidden: Tensor, depth: int, position: Tensor) -> Tensor:
        logits = self.model.output[depth](hidden)[:, 0].float()  # [R, V]
        condition, *unguided = logits.split(self.batch)
        if unguided:
            scale = self.scales[:, depth].index_select(0, position)
            logits = (condition - unguided[0]).mul_(scale).add_(unguided[0])
        codes = self._choose(logits, depth, self.keys[:, :, depth].index_select(1, position)[:, 0])
        given = self.given[:, :, depth].index_select(1, position)
        codes = torch.where(given == FREE, codes, given)
        self.codes[:, :, depth].index_copy_(1, position, codes)
        if self.settings.likelihood:
            likelihood = condition.log_softmax(-1).gather(1, codes)
            self.likelihood[:, :, depth].index_copy_(1, position, likelihood)
        return torch.cat([codes, codes]) if unguided else codes

    def _choose(self, logits: Tensor, depth: int, keys: Tensor) -> Tensor:
        """logits [B, V] and keys [B, 2] -> codes [B, 1]. The Gumbel trick: the largest of logit + noise is a draw from
        the softmax, and rounding changes it only where two are equal, so that batch sizes agree."""
        settings = self.settings
        if settings.temperature[depth] == 0:
            return logits.argmax(-1, keepdim=True)
        if settings.temperature[depth] != 1:
            logits = logits / settings.temperature[depth]
        top_k = settings.top_k[depth] or logits.shape[1]
        top_p = settings.top_p[depth]
        if top_k >= logits.shape[1] and top_p == 1:
            return gumbel(keys, self.vocabulary).add_(logits).argmax(-1, keepdim=True)
        logits, codes = logits.topk(min(top_k, logits.shape[1]))
        if top_p < 1:
            shares = logits.softmax(-1)
            logits = logits.masked_fill(shares.cumsum(-1) - shares > top_p, -math.inf)  # the likeliest always stays
        return codes.gather(1, (logits + gumbel(keys, codes.int())).argmax(-1, keepdim=True))


_samplers: weakref.WeakKeyDictionary[DnDTransformer, Sampler] = weakref.WeakKeyDictionary()


def _sampler_for(model: DnDTransformer, batch: int, settings: Settings) -> Sampler:
    """Return a sampler; on a GPU the model's last one where it still fits, since its graphs took time to capture."""
    if model.tok_embeddings.weight.device.type != "cuda" or model.training:
        return Sampler(model, batch, settings)
    sampler = _samplers.pop(model, None)
    if sampler is None or (sampler.batch, sampler.settings, sampler.held) != (batch, settings, _held_by_graphs(model)):
        sampler = None  # its memory is free before another takes some
        sampler = Sampler(model, batch, settings)
    _samplers[model] = sampler
    return sampler


def _held_by_graphs(model: DnDTransformer) -> tuple[int, ...]:
    """Return addresses of all that captured graphs read: weights that were moved or replaced need new graphs."""
    return tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))


def _per_depth(name: str, value: PerDepth, depth: int, least: float, most: float = math.inf) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * depth
    if len(values) != depth or not all(least <= number <= most for number in values):
        raise ValueError(f"{name} {value} must be one number, or {depth} (one per depth), in {least}..{most}")
    return values


def _checked_classes(classes: Tensor | Sequence[int], config: TransformerConfig) -> Tensor:
    classes = torch.as_tensor(classes, dtype=torch.int64)
    outside = classes[(classes < 0) | (classes >= config.num_classes)]
    if classes.ndim != 1 or len(outside):
        found = f"has {classes.ndim} axes" if classes.ndim != 1 else f"holds {int(outside[0])}"
        raise ValueError(f"classes {found}: give a list of classes in 0..{config.num_classes - 1} of this model")
    return classes


def _checked_given(given: Tensor | None, batch: int, config: TransformerConfig) -> Tensor:
    shape = (batch, config.num_positions, config.depth)
    if given is None:
        return torch.full(shape, FREE)
    if tuple(given.shape) != shape or given.min() < FREE or given.max() >= config.codebook_size:
        raise ValueError(f"given must be codes of shape {shape} in 0..{config.codebook_size - 1}, -1 where to sample")
    return given
