"""The DnD transformer (arXiv 2410.01912): an autoregressive transformer over a grid of codes that also has a depth.

Reads top to bottom: configuration, rotary factors, attention, feed-forward, output with its loss, the model. Parameter
names are those of the released checkpoints, so weights go both ways.

Shape letters: B images, L grid positions (raster order), T positions of the sequence at hand, D codes at a position,
V codebook size, C width, H attention heads, K = C / H width of a head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_specs.shape import MAX_WIDTH, SIZES, check_transformer
from data_specs.spec import Spec
from train.kernels import ChunkedCrossEntropy, fused

INIT_STD = 0.02
NORM_EPS = 1e-5
ROTARY_BASE = 10_000.0

Rotary = tuple[Tensor, Tensor]  # cosine and signed sine, each [T, 1, 1, K]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, T, H, K] -> [B, T, H, K]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and dropouts of a DnD transformer; depth, the codes at a position, is the number of head_layers."""

    num_layers: int
    num_heads: int
    dim: int
    codebook_size: int
    grid: tuple[int, int]  # rows, columns
    head_layers: tuple[int, ...]  # 0-based layers after which a head sits, one a code; the last is the last layer
    heads: Literal["dnd", "vertical", "parallel"] = "dnd"  # the paper's arms: see head_positions
    num_classes: int = 1
    class_dropout: float = 0.0  # over 0 adds the row "no class" to the class table; the training loop draws it
    token_dropout: float = 0.1
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    activation_checkpointing: float = 0.0  # share of layers, 0..1, recomputed in backward

    def __post_init__(self) -> None:
        counts = (self.num_layers, self.num_heads, len(self.head_layers))
        sizes = (self.dim, self.codebook_size, self.num_classes, *self.grid)
        if min(*counts, *sizes) < 1:
            raise ValueError(
                "layers, heads, width, codebook_size, num_classes, grid and head_layers must be at least 1"
            )
        if (widest := max(sizes)) > MAX_WIDTH:
            raise ValueError(f"width, codebook_size, num_classes or grid of {widest}: at most {MAX_WIDTH} can be built")
        check_transformer(self.num_layers, self.num_heads, self.dim, self.head_layers)

    @property
    def head_positions(self) -> tuple[int, ...]:
        """Layers after which the heads really sit: head_layers, or, in the paper's ablations (table 3), all the last.

        "vertical" predicts the codes one after the other on the last layer, each seeing those before it; "parallel"
        predicts them there at once, none seeing another.
        """
        return self.head_layers if self.heads == "dnd" else (self.num_layers - 1,) * self.depth

    @property
    def depth(self) -> int:
        """Codes at a position (D)."""
        return len(self.head_layers)

    @property
    def num_positions(self) -> int:
        """Grid positions (L)."""
        return self.grid[0] * self.grid[1]

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the feed-forward: 2/3 · 4 · dim rounded up to a multiple of 256."""
        return 256 * math.ceil(int(8 * self.dim / 3) / 256)

    def to_json(self) -> str:
        """Return the text of a transformer.json."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_released(cls, released: Mapping[str, Any]) -> TransformerConfig:
        """Build a config from a released checkpoint's arguments (the names of shared/reference).

        Args:
            released: either dim, n_layer and n_head, or `preset`, a size's name such as "GPT-XXL"; an entry of
                released_transformers.json, with `args` beside `preset`, goes as it is.

        Raises:
            ValueError: an unknown preset, or a grid that is not square.
        """
        args = {**released, **released.get("args", {})}
        layers, heads, dim = _released_size(args)
        side = math.isqrt(args["block_size"])
        if side * side != args["block_size"]:
            raise ValueError(f"block_size {args['block_size']} is not a square: released grids are")
        return cls(
            num_layers=layers,
            num_heads=heads,
            dim=dim,
            codebook_size=args["vocab_size"],
            grid=(side, side),
            head_layers=tuple(args["pred_head_positions"]),
            num_classes=args["num_classes"],
            class_dropout=args["class_dropout_prob"],
            token_dropout=args.get("token_dropout_p", 0.1),
            residual_dropout=args.get("resid_dropout_p", 0.1),
            ffn_dropout=args.get("ffn_dropout_p", 0.1),
        )


def _released_size(args: dict[str, Any]) -> tuple[int, int, int]:
    if "dim" in args:
        return args["n_layer"], args["n_head"], args["dim"]
    name = str(args.get("preset", "")).removeprefix("GPT-")
    if name not in SIZES:
        raise ValueError(f"preset {args.get('preset')!r} is unknown: use one of {', '.join(f'GPT-{s}' for s in SIZES)}")
    return SIZES[name]


def config_of(spec: Spec) -> TransformerConfig:
    """Build the configuration of a spec's model."""
    section = spec.transformer
    layers, heads, width = section.dimensions
    return TransformerConfig(
        num_layers=layers,
        num_heads=heads,
        dim=width,
        codebook_size=spec.codes.codebook_size,
        grid=spec.codes.grid,
        head_layers=section.head_layers,
        heads=section.heads,
        num_classes=section.num_classes,
        class_dropout=section.class_dropout,
        token_dropout=section.token_dropout,
        residual_dropout=section.residual_dropout,
        ffn_dropout=section.ffn_dropout,
        activation_checkpointing=spec.train.activation_checkpointing if spec.train else 0.0,
    )


def rotary_factors(config: TransformerConfig, device: torch.device | str) -> Rotary:
    """Return the cosine and signed sine of every position of the sequence, float32, each [1 + L, 1, 1, K].

    Half of a head turns by row, half by column. Row 0 belongs to the class and is all zero: its q and k vanish, so
    every query scores it 0.
    """
    half = config.dim // config.num_heads // 2
    speeds = ROTARY_BASE ** -(torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in config.grid)
    by_row = repeat(torch.outer(rows, speeds), "r k -> (r c) k", c=config.grid[1])
    by_column = repeat(torch.outer(columns, speeds), "c k -> (r c) k", r=config.grid[0])
    angles = torch.cat([by_row, by_column], dim=-1)  # [L, K / 2]
    sine = angles.sin()
    pairs = repeat(angles.cos(), "l k -> l (k two)", two=2), torch.stack([-sine, sine], -1).flatten(1)
    return tuple(F.pad(table, (0, 0, 1, 0))[:, None, None] for table in pairs)  # type: ignore[return-value]


@fused
def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn neighbouring pairs of the last axis: x [B, T, *, H, K], in float32, returned in x's dtype."""
    cosine, sine = rotary
    wide = x.float()
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (wide * cosine + swapped * sine).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from each position to itself and those before it: [B, T, H, K] each -> [B, T, H, K].

    On CPUs in float32: the bfloat16 kernels' backward is up to nine times slower.
    """
    dtype = torch.float32 if q.device.type == "cpu" else q.dtype
    queries, keys, values = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2).to(q.dtype)


@torch.no_grad()
def draw(weight: Tensor) -> None:
    """Fill a weight from N(0, 0.02) of the CPU's generator in float32, so that all ZeRO stages begin alike.

    deepspeed.zero.Init makes and partitions each module on the GPU in the working type, where numbers come otherwise.
    """
    if not weight.is_meta:
        weight.copy_(torch.empty_like(weight, device="cpu", dtype=torch.float32).normal_(std=INIT_STD))


class Linear(nn.Linear):
    """A linear map without bias, weights drawn from N(0, 0.02)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        draw(self.weight)


class Embedding(nn.Embedding):
    """A table of vectors drawn from N(0, 0.02)."""

    def reset_parameters(self) -> None:
        draw(self.weight)


class ClassEmbedding(nn.Module):
    """The class at position 0 of the sequence: classes [B] -> [B, 1, C]; index num_classes means no class."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding_table = Embedding(config.num_classes + (config.class_dropout > 0), config.dim)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding_table(classes)[:, None]


@fused
def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Divide x [..., C] by its root mean square, in float32; return it in x's dtype, times weight [C]."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPS).to(x.dtype) * weight


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Multi-head self-attention; `attend` is how queries meet keys (causal in training, a cache in sampling)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.wqkv = Linear(config.dim, 3 * config.dim)
        self.wo = Linear(config.dim, config.dim)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend = causal_attention) -> Tensor:
        qkv = rearrange(self.wqkv(x), "b t (three h k) -> b t three h k", three=3, h=self.num_heads)
        q, k = rotate(qkv[:, :, :2], rotary).unbind(2)
        return self.residual_dropout(self.wo(rearrange(attend(q, k, qkv[:, :, 2]), "b t h k -> b t (h k)")))


@fused
def gated(gate: Tensor, x: Tensor) -> Tensor:
    """Return SwiGLU's product: SiLU of the gate times x."""
    return F.silu(gate) * x


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.ffn_dim)
        self.w3 = Linear(config.dim, config.ffn_dim)
        self.w2 = Linear(config.ffn_dim, config.dim)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(gated(self.w1(x), self.w3(x))))


class Block(nn.Module):
    """One layer: attention and feed-forward, each on the normed input and added to it; h [B, T, C] -> [B, T, C]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim)
        self.ffn_norm = RMSNorm(config.dim)

    def forward(self, h: Tensor, rotary: Rotary, attend: Attend = causal_attention) -> Tensor:
        h = h + self.attention(self.attention_norm(h), rotary, attend)
        return h + self.feed_forward(self.ffn_norm(h))


class Output(Linear):
    """Width to codebook: logits, or the mean cross-entropy against targets without all logits existing at once."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, h: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return for h [B, T, C] float32 logits [B, T, V], or, given targets [B, T], their mean cross-entropy []."""
        if targets is None:
            return super().forward(h).float()
        return ChunkedCrossEntropy.apply(h.flatten(0, -2), self.weight, targets.flatten(), torch.is_grad_enabled())


class DnDTransformer(nn.Module):
    """The model. Position t of the sequence holds the class (t = 0) or the sum of the codes at grid position t - 1,
    and predicts the codes at grid position t: head d after layer head_positions[d], later ones seeing earlier codes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = ClassEmbedding(config)
        self.tok_embeddings = Embedding(config.codebook_size, config.dim)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.ModuleList(RMSNorm(config.dim) for _ in range(config.depth))
        self.output = nn.ModuleList(Output(config.dim, config.codebook_size) for _ in range(config.depth))

    @classmethod
    def of_state(cls, config: TransformerConfig, state: Mapping[str, Tensor]) -> Self:
        """Make a model over a state dict's tensors, in eval mode, without the time and memory of an initial one."""
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model.eval()

    def forward(self, codes: Tensor, classes: Tensor, return_loss: bool = False) -> Tensor:
        """Predict all codes from those before them, teacher-forced.

        No class is dropped here: that is a function of the sample's position in the data, so the loop that knows it
        passes index num_classes for dropped samples.

        Args:
            codes: int64 [B, L, D].
            classes: int64 [B]; index num_classes means no class.
            return_loss: whether the loss is wanted, without all logits existing at once.

        Returns:
            float32 logits [B, L, D, V], or with return_loss the mean cross-entropy of each depth, nats, [D].
        """
        results: list[Tensor] = []

        def head(depth: int, h: Tensor) -> Tensor:
            target = codes[:, :, depth]
            results.append(self.output[depth](h, target) if return_loss else self.output[depth](h))
            return target

        h = torch.cat([self.cls_embedding(classes), self.tok_embeddings(codes[:, :-1]).sum(2)], dim=1)
        cosine, sine = rotary_factors(self.config, codes.device)
        self.run_layers(self.token_dropout(h), (cosine[: h.shape[1]], sine[: h.shape[1]]), head)
        return torch.stack(results, dim=-1 if return_loss else 2)

    def run_layers(
        self, h: Tensor, rotary: Rotary, head: Callable[[int, Tensor], Tensor], attentions: list[Attend] | None = None
    ) -> None:
        """Take h [B, T, C] through all layers; in training and in sampling.

        Args:
            head: called as head(depth, normed h), returns the codes [B, T] of that depth, the true or the sampled ones,
                which are added to h for the heads that follow.
            attentions: one attention function a layer (default: causal).
        """
        positions = self.config.head_positions
        for index, layer in enumerate(self.layers):
            if attentions:  # past torch.compile, which would compile anew for each function
                h = layer.forward(h, rotary, attentions[index])
            elif self._recomputed(index):
                h = checkpoint(layer, h, rotary, use_reentrant=True)
            else:
                h = layer(h, rotary)
            for depth in (depth for depth, position in enumerate(positions) if position == index):
                codes = head(depth, self.norm[depth](h))
                if depth + 1 < self.config.depth and self.config.heads != "parallel":
                    h = h + self.tok_embeddings(codes)

    def _recomputed(self, index: int) -> bool:
        """Return whether layer `index` is recomputed in backward; the chosen layers are spread evenly.

        The reentrant kind: the other compares shapes of saved parameters, which ZeRO-3 empties in between.
        """
        share = self.config.activation_checkpointing
        return self.training and torch.is_grad_enabled() and math.floor((index + 1) * share) > math.floor(index * share)
