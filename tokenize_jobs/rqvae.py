"""The RQ-VAE: a convolutional encoder and decoder (as in taming-transformers) around a residual quantizer.

Parameter names and mathematics are those of the released tokenizers (kakaobrain/rq-vae-transformer, arXiv 2203.01941).
Shapes: B images of H x W pixels, h x w code positions, D codes a position.
"""

import dataclasses
import itertools
import json
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from data_specs.records import parse_config
from data_specs.shape import MAX_CODES, MAX_DEPTH, MAX_LAYERS, MAX_WIDTH
from tokenize_jobs.quantizer import ResidualQuantizer

RETIRED_KEYS = ("gradient", "codebook_init")  # keys of older files: ways to train that brought nothing and are gone


@dataclasses.dataclass(frozen=True)
class RQVAEConfig:
    """What makes a tokenizer; the defaults are the usual f=16 architecture of RQ-VAE. A single number is a square."""

    image_size: tuple[int, int]  # height and width in pixels
    grid: tuple[int, int]  # code positions, rows and columns
    depth: int  # codes at a position
    codebook_size: int
    shared_codebook: bool = True
    embed_dim: int = 256  # channels of the latents that are quantized
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)  # channels of each level in units of ch; every level halves the side
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] | None = None  # levels with attention, by side; None: the latents' own
    resolution: int = 0  # the side by which attn_resolutions count; 0: the image's height
    z_channels: int = 256
    patch: int = 1  # side of the squares of pixels folded into channels first; 1 in every released tokenizer
    shortcut: bool = False  # a linear way past encoder and decoder; none in the released tokenizers
    encoder: Literal["convolutional", "linear"] = "convolutional"  # linear: see LinearEncoder; not in released ones
    dropout: float = 0.0
    decay: float = 0.99
    commitment_weight: float = 0.25
    restart_unused_codes: bool = True

    def __post_init__(self) -> None:
        put = partial(object.__setattr__, self)
        for name in ("image_size", "grid"):
            value = getattr(self, name)
            put(name, (value, value) if isinstance(value, int) else tuple(value))
        sides = (*self.image_size, *self.grid, self.patch, len(self.ch_mult), *self.ch_mult)
        if min(*sides, self.depth, self.embed_dim, self.ch, self.num_res_blocks, self.z_channels) < 1:
            raise ValueError("sizes, depth, channels, levels, blocks and patch must be at least 1")
        put("resolution", self.resolution or self.image_size[0])
        smallest = self.resolution // self.downsampling
        put("attn_resolutions", (smallest,) if self.attn_resolutions is None else tuple(self.attn_resolutions))
        put("ch_mult", tuple(self.ch_mult))
        self._check()

    def _check(self) -> None:
        blocks = len(self.ch_mult) * self.num_res_blocks
        if self.depth > MAX_DEPTH or blocks > MAX_LAYERS:
            raise ValueError(
                f"{self.depth} codes a position and {blocks} blocks: at most {MAX_DEPTH} and {MAX_LAYERS} can be built"
            )
        if (widest := max(self.embed_dim, self.ch * max(self.ch_mult), self.z_channels, 3 * self.patch**2)) > MAX_WIDTH:
            raise ValueError(f"{widest} channels: at most {MAX_WIDTH} can be built")
        for side, positions in zip(self.image_size, self.grid, strict=True):
            if side % self.downsampling or (side // self.downsampling) % positions:
                raise ValueError(
                    f"image_size {side} with {len(self.ch_mult)} levels and patch {self.patch} has latents of "
                    f"{side / self.downsampling:g}: the grid of {positions} must divide that"
                )
        if any(self.ch * factor % 32 for factor in self.ch_mult):
            raise ValueError(f"ch {self.ch} times ch_mult {self.ch_mult} must be multiples of 32 (group normalization)")
        if not 1 <= self.codebook_size <= MAX_CODES:
            raise ValueError(f"codebook_size is {self.codebook_size}: codes are 16 bits, at most {MAX_CODES}")

    @property
    def downsampling(self) -> int:
        """Pixels along a side of the image for one along a side of the latents."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the latents."""
        height, width = self.image_size
        return height // self.downsampling, width // self.downsampling, self.embed_dim

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """h, w, D of the codes."""
        return *self.grid, self.depth

    def to_json(self) -> str:
        """Return the configuration as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RQVAEConfig":
        """Read what `to_json` wrote; raise ValueError for text that is no such configuration."""
        return parse_config(cls, text, RETIRED_KEYS)

    @classmethod
    def from_released(cls, hparams: dict[str, Any], ddconfig: dict[str, Any]) -> "RQVAEConfig":
        """Read the two mappings of a released config.yaml; ValueError names what has no counterpart here."""
        _refuse_foreign(hparams, ddconfig)
        height, width, channels = hparams["latent_shape"]
        *grid, depth = hparams["code_shape"]
        if channels != hparams["embed_dim"]:
            raise ValueError(f"hparams: latent_shape has {channels} channels, embed_dim is {hparams['embed_dim']}")
        factor = 2 ** (len(ddconfig["ch_mult"]) - 1)
        same = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "z_channels")
        made = cls(
            image_size=(height * factor, width * factor),
            grid=tuple(grid),
            depth=depth,
            codebook_size=_single(hparams["n_embed"], "n_embed"),
            shared_codebook=hparams["shared_codebook"],
            embed_dim=channels,
            dropout=ddconfig.get("dropout", 0.0),
            decay=_single(hparams.get("decay", 0.99), "decay"),
            commitment_weight=hparams.get("latent_loss_weight", 0.25),
            restart_unused_codes=hparams.get("restart_unused_codes", False),
            **{name: ddconfig[name] for name in same},
        )
        return cls.from_json(made.to_json())  # which looks at the types, too

    def to_released(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `hparams` and `ddconfig` of a released config.yaml; ValueError for what has no counterpart there."""
        for name, value in (("patch", 1), ("shortcut", False), ("encoder", "convolutional")):
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)}: that of released tokenizers is {value}")
        hparams = {
            "bottleneck_type": "rq",
            "embed_dim": self.embed_dim,
            "n_embed": self.codebook_size,
            "latent_shape": list(self.latent_shape),
            "code_shape": list(self.code_shape),
            "shared_codebook": self.shared_codebook,
            "decay": self.decay,
            "restart_unused_codes": self.restart_unused_codes,
            "loss_type": "mse",
            "latent_loss_weight": self.commitment_weight,
        }
        ddconfig = {
            "double_z": False,
            "z_channels": self.z_channels,
            "resolution": self.resolution,
            "in_channels": 3,
            "out_ch": 3,
            "ch": self.ch,
            "ch_mult": list(self.ch_mult),
            "num_res_blocks": self.num_res_blocks,
            "attn_resolutions": list(self.attn_resolutions or ()),
            "dropout": self.dropout,
        }
        return hparams, ddconfig


def _refuse_foreign(hparams: dict[str, Any], ddconfig: dict[str, Any]) -> None:
    fixed = {"bottleneck_type": "rq", "double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True}
    for name, value in fixed.items():
        given = {**hparams, **ddconfig}.get(name, value)
        if given != value:
            raise ValueError(f"{name} is {given!r}: only {value!r} is supported")
    names = {
        "hparams": "embed_dim n_embed latent_shape code_shape shared_codebook",
        "ddconfig": "ch ch_mult num_res_blocks attn_resolutions resolution z_channels",
    }
    for where, given in (("hparams", hparams), ("ddconfig", ddconfig)):
        if missing := [name for name in names[where].split() if name not in given]:
            raise ValueError(f"{where} lacks {', '.join(missing)}")


def _single(value: object, name: str) -> Any:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(set(values)) != 1:
        raise ValueError(f"{name} is {value}: a different one for each depth is not supported")
    return values[0]


class RQVAE(nn.Module):
    """The tokenizer. Images are [B, 3, H, W] in [-1, 1], codes [B, h, w, D] int64.

    Weights may be bfloat16 and the call under autocast, but the codebooks stay float32 (`self.quantizer.float()`) and
    distances are always computed in it. Any image whose sides the downsampling divides will do.
    """

    def __init__(self, config: RQVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = LinearEncoder(config) if config.encoder == "linear" else Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = ResidualQuantizer(
            num_rows=config.codebook_size,
            channels=config.embed_dim,
            depth=config.depth,
            fold=(config.latent_shape[0] // config.grid[0], config.latent_shape[1] // config.grid[1]),
            shared_codebook=config.shared_codebook,
            decay=config.decay,
            restart_unused_codes=config.restart_unused_codes,
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstruction [B, 3, H, W], commitment loss (mean over depths, unweighted) and codes [B, h, w, D].

        In training mode the codebooks learn from the batch, over all ranks of torch.distributed.
        """
        quantized, commitment_loss, codes = self.quantizer(self.latents(images))
        return self.images(quantized), commitment_loss, codes

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return codes [B, h, w, D] int64 of images; nothing is learned, whatever the mode."""
        return self.quantizer.encode(self.latents(images))

    @torch.no_grad()
    def decode(self, codes: Tensor, depths: int | None = None) -> Tensor:
        """Return images [B, 3, H, W] of codes, or of the first `depths` of each position; ValueError beyond D."""
        return self.images(self.quantizer.decode(codes, depths))

    def latents(self, images: Tensor) -> Tensor:
        """Return what is quantized: [B, latent height, latent width, embed_dim]."""
        images = images.to(self.quant_conv.weight.dtype)
        return rearrange(self.quant_conv(self.encoder(images)), "b c h w -> b h w c")

    def images(self, latents: Tensor) -> Tensor:
        """Return images of (quantized) latents, the inverse of `latents`."""
        latents = rearrange(latents, "b h w c -> b c h w").to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(latents))


class Encoder(nn.Module):
    """Images to [B, z_channels, latent height, latent width]; each level but the last halves the side.

    The shortcut adds a linear map of each latent's square of pixels (the residual autoencoding of arXiv 2410.10733).
    """

    def __init__(self, config: RQVAEConfig):
        super().__init__()
        self.patch = config.patch
        self.fold = config.downsampling
        channels = config.ch
        self.conv_in = conv3x3(3 * config.patch**2, channels)
        self.down = nn.ModuleList()
        for level, factor in enumerate(config.ch_mult):
            blocks = Level(config, level, channels, config.ch * factor, config.num_res_blocks)
            channels = config.ch * factor
            if level < len(config.ch_mult) - 1:
                blocks.downsample = Downsample(channels)
            self.down.append(blocks)
        self.mid = Middle(channels, config.dropout)
        self.norm_out = group_norm(channels)
        self.conv_out = conv3x3(channels, config.z_channels)
        self.shortcut = nn.Conv2d(3 * self.fold**2, config.z_channels, 1) if config.shortcut else None

    def forward(self, images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(normed(self.norm_out, self.mid(x))))
        return x if self.shortcut is None else x + self.shortcut(F.pixel_unshuffle(images, self.fold))


class LinearEncoder(nn.Module):
    """Images to [B, z_channels, latent height, latent width] by a linear map of each latent's square of pixels.

    It sees nothing around the square, so that equal squares have equal codes: the same letter, wherever it stands.
    """

    def __init__(self, config: RQVAEConfig):
        super().__init__()
        self.fold = config.downsampling
        self.proj = nn.Conv2d(3 * self.fold**2, config.z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(F.pixel_unshuffle(images, self.fold))


class Decoder(nn.Module):
    """[B, z_channels, latent height, latent width] to images; the mirror of the encoder, a block more at each level."""

    def __init__(self, config: RQVAEConfig):
        super().__init__()
        self.patch = config.patch
        self.fold = config.downsampling
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = conv3x3(config.z_channels, channels)
        self.mid = Middle(channels, config.dropout)
        self.up = nn.ModuleList()
        for level, factor in reversed(list(enumerate(config.ch_mult))):
            blocks = Level(config, level, channels, config.ch * factor, config.num_res_blocks + 1)
            channels = config.ch * factor
            if level > 0:
                blocks.upsample = Upsample(channels)
            self.up.insert(0, blocks)
        self.norm_out = group_norm(channels)
        self.conv_out = conv3x3(channels, 3 * config.patch**2)
        self.shortcut = nn.Conv2d(config.z_channels, 3 * self.fold**2, 1) if config.shortcut else None

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(normed(self.norm_out, x)))
        x = F.pixel_shuffle(x, self.patch) if self.patch > 1 else x
        return x if self.shortcut is None else x + F.pixel_shuffle(self.shortcut(latents), self.fold)


class Level(nn.Module):
    """The residual blocks of one level, each followed by attention where the configuration asks for it, then what
    leads to the next level."""

    def __init__(self, config: RQVAEConfig, level: int, in_channels: int, out_channels: int, num_blocks: int):
        super().__init__()
        channels = itertools.pairwise([in_channels] + [out_channels] * num_blocks)
        self.block = nn.ModuleList(ResnetBlock(before, after, config.dropout) for before, after in channels)
        side = config.resolution // config.patch >> level
        with_attention = side in (config.attn_resolutions or ())
        self.attn = nn.ModuleList(Attention(out_channels) for _ in range(num_blocks * with_attention))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        for resample in (self.downsample, self.upsample):
            x = resample(x) if resample is not None else x
        return x


class Middle(nn.Module):
    """Two residual blocks with attention between them, at the latents' resolution."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = Attention(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(normed(self.norm1, x)))
        y = self.conv2(self.dropout(F.silu(normed(self.norm2, y))))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Every position attends to every other, one head as wide as the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        inputs = normed(self.norm, x)
        q, k, v = (rearrange(conv(inputs), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve the side; the missing row and column are padded below and to the right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by repeating pixels, then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a convolution that keeps the side."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the norm of every layer here: 32 groups."""
    return nn.GroupNorm(32, channels, eps=1e-6)


def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return x normed, in its own type; the sums inside the kernel are float32 in any case.

    CUDA's autocast would write it, and SiLU's result, in float32: a third of all that backward keeps.
    """
    if not x.is_cuda:
        return norm(x)
    with torch.autocast("cuda", enabled=False):
        weight = norm.weight.to(x.dtype)
        bias = norm.bias.to(x.dtype)
        return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
