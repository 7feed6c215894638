"""Linear maps for sampling on CPUs, where a step multiplies a few rows with every weight: by the product that is the
fastest here for each shape, or int8.

Which one that is differs between makes of CPU, numbers of rows and threads, so it is measured (docs/sampling.md). The
fastest for up to four rows on one thread is our own in C, where there is a compiler; so are attention and norms then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.model import DnDTransformer, FeedForward, RMSNorm, TransformerConfig
from train.native import CACHED, MOST_ROWS, NativeLinear, NativeNorm, native_attention, native_code, native_suits

ROWS = 16  # of a step, where nobody says how many
ROUNDS = 6  # of each product, in turns; the first of them warms up
GAIN = 0.95  # of the plain product's time that another must stay below
MEASURED = 1 << 18  # bytes of a shape's weights; of fewer, chance decides which product is the fastest

OTHERS = "attention, norms"  # what is no product
Products = Mapping[str, str]  # "OUTxIN" to a name of PRODUCTS, or "plain"; OTHERS to "native" or "plain"


class TransposedLinear(nn.Module):
    """The weight times the rows as columns: on some CPUs the fastest for two to four rows."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        product = torch.mm(self.weight, x.flatten(0, -2).t()).t()
        return product.contiguous().view(*x.shape[:-1], -1)


class MklLinear(nn.Module):
    """A map with its weight laid out for MKL's product of so many rows."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        super().__init__()
        self.weight = weight
        self.rows = rows
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, None, self.rows)


class PackedLinear(nn.Module):
    """A map with its weight laid out for oneDNN's product, of `least` rows at least: four can cost less than two."""

    def __init__(self, weight: Tensor, least: int = 1) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.least = least

    def widened(self, x: Tensor) -> Tensor:
        """Return x [B, T, C] with as many rows of zeros behind it as are missing."""
        missing = self.least - x.shape[0] * x.shape[1]
        return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.widened(x))[: x.shape[0]]

    def product(self, x: Tensor, activation: str = "none") -> Tensor:
        """Return the product with x that has rows enough."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, activation, [], "")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """Return the product with x, times `factor`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed, None, "mul")


class PackedFeedForward(nn.Module):
    """SwiGLU over maps packed for oneDNN; gate and product are done where the maps' results are written."""

    w1: PackedLinear
    w3: PackedLinear

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.w1 = gate  # type: ignore[assignment]
        self.w3 = up  # type: ignore[assignment]
        self.w2 = down

    def forward(self, x: Tensor) -> Tensor:
        wide = self.w1.widened(x)
        return self.w2(self.w3.times(wide, self.w1.product(wide, "swish"))[: x.shape[0]])


PRODUCTS: dict[str, Callable[[Tensor, int], nn.Module]] = {
    "transposed": lambda weight, rows: TransposedLinear(weight),
    "mkl": MklLinear,
    "onednn": lambda weight, rows: PackedLinear(weight),
    "onednn-4": lambda weight, rows: PackedLinear(weight, 4),
    "native": lambda weight, rows: NativeLinear(weight),
}


def choose_products(config: TransformerConfig, dtype: torch.dtype, rows: int) -> dict[str, str]:
    """Find the fastest product for each shape of a model's maps for so many rows, by this process's threads."""
    c = config.dim
    f = config.ffn_dim
    layers = config.num_layers
    shapes = {(3 * c, c): layers, (c, c): layers, (f, c): 2 * layers, (c, f): layers}
    shapes |= {(config.codebook_size, c): config.depth}
    threads = torch.get_num_threads()
    native = native_suits(config, dtype, threads)
    names = offered(dtype, native and rows <= MOST_ROWS)
    chosen = {f"{out}x{into}": fastest(out, into, dtype, rows, n, threads, names) for (out, into), n in shapes.items()}
    return chosen | {OTHERS: "native" if native else "plain"}


@lru_cache(maxsize=256)
def fastest(
    out: int, into: int, dtype: torch.dtype, rows: int, copies: int, threads: int, names: tuple[str, ...]
) -> str:
    """Find the product that is fastest here for a weight [out, into], or "plain" where none is faster than F.linear.

    It decides the last bits of samples, so where nothing is to be gained it is "plain" on every run.

    Args:
        copies: of the weight that are multiplied in turn, as in a model's step; no more than are too large for caches.
        threads: of this process, by which results are kept.
        names: of the products that are tried.
    """
    item = torch.empty((), dtype=dtype).itemsize
    if copies * out * into * item < MEASURED:
        return "plain"
    number = min(copies, max(1, CACHED // (out * into * item)))
    x = torch.ones(rows, 1, into, dtype=dtype)
    weight = torch.ones(out, into, dtype=dtype)
    with torch.inference_mode():
        weights = [weight.clone() for _ in range(number)]
        maps: dict[str, list[Callable[[Tensor], Tensor]]] = {
            name: [PRODUCTS[name](one, rows) for one in weights] for name in names
        }
        maps["plain"] = [partial(F.linear, weight=one) for one in weights]
        clock = time.thread_time if threads == 1 else time.perf_counter  # the former leaves out what else runs here
        taken = [{name: _seconds(of_kind, x, clock) for name, of_kind in maps.items()} for _ in range(ROUNDS)]
    least = {name: min(of_round[name] for of_round in taken) for name in maps}  # what else runs here disturbs some
    best = min(least, key=least.__getitem__)
    return best if least[best] < GAIN * least["plain"] else "plain"


def _seconds(maps: Sequence[Callable[[Tensor], Tensor]], x: Tensor, clock: Callable[[], float]) -> float:
    """Return the seconds of all the maps, one after the other."""
    started = clock()
    for one in maps:
        one(x)
    return clock() - started


def offered(dtype: torch.dtype, native: bool = True) -> tuple[str, ...]:
    """Return the products that there are here for a type; with `native` the one in C, where it can be compiled."""
    packable = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    onednn = torch.backends.mkldnn.is_available() and packable
    there = {
        "transposed": True,
        "mkl": dtype == torch.float32 and torch.backends.mkl.is_available(),
        "onednn": onednn,
        "onednn-4": onednn,
        "native": native and native_code(dtype) is not None,
    }
    return tuple(name for name, has in there.items() if has)


class Int8Linear(nn.Module):
    """A map with int8 weights and a scale a row, for CPUs; it computes in bfloat16."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch._weight_int8pack_mm(x.flatten(0, -2).bfloat16(), self.weight, self.scale)
        return flat.view(*x.shape[:-1], -1).to(x.dtype)


def packed(model: DnDTransformer, rows: int = ROWS, products: Products | None = None) -> DnDTransformer:
    """Return the model with its maps as sampling on a CPU multiplies them fastest; itself on GPUs.

    Args:
        model: not a rank's share of its weights; one that is packed or int8 already stays as it is.
        rows: of a step.
        products: as `choose_products` gives them; by default that is asked.
    """
    weight = model.tok_embeddings.weight
    if (
        weight.device.type != "cpu"
        or isinstance(model, SamplingTransformer)
        or model.output[0].weight.shape != weight.shape
    ):
        return model
    chosen = choose_products(model.config, weight.dtype, rows) if products is None else products
    _refuse_missing(chosen, weight.dtype)
    converted = _with_modules(model, partial(_pack, chosen=chosen, rows=rows))
    if chosen.get(OTHERS) == "native":
        converted.attention = native_attention
    return converted


def _refuse_missing(chosen: Products, dtype: torch.dtype) -> None:
    known = {"plain", "native", *offered(dtype, native=False)}  # what is native says itself what it lacks
    if missing := set(chosen.values()) - known:
        raise ValueError(
            f"no product {min(missing)!r} here, with which these samples were begun: go on where there is one, or draw "
            "under another name (--set sample.name=…)"
        )


def _pack(module: nn.Module, chosen: Products, rows: int) -> nn.Module | None:
    """Return what takes the place of a module; None where its parts are to be asked for."""
    if isinstance(module, FeedForward) and chosen[_shape_of(module.w1)].startswith("onednn"):
        return PackedFeedForward(*(_pack_linear(one, chosen, rows) for one in (module.w1, module.w3, module.w2)))
    if isinstance(module, RMSNorm) and chosen.get(OTHERS) == "native":
        return NativeNorm(module.weight.detach())
    return _pack_linear(module, chosen, rows) if isinstance(module, nn.Linear) else None


def _pack_linear(linear: nn.Linear, chosen: Products, rows: int) -> nn.Module:
    name = chosen[_shape_of(linear)]
    return linear if name == "plain" else PRODUCTS[name](linear.weight.detach(), rows)


def _shape_of(linear: nn.Linear) -> str:
    return "x".join(map(str, linear.weight.shape))


def quantize_int8(model: DnDTransformer) -> DnDTransformer:
    """Return the model with int8 weights in its linear maps (weight-only, symmetric, a scale a row), for sampling only.

    Raises:
        ValueError: it lies on a GPU, where there is no kernel that would read int8 weights faster than bfloat16 ones.
    """
    if model.tok_embeddings.weight.device.type != "cpu":
        raise ValueError("sample.dtype int8 is for CPUs: on a GPU use bfloat16")
    return _with_modules(model, lambda module: Int8Linear(module) if isinstance(module, nn.Linear) else None)


class SamplingTransformer(DnDTransformer):
    """A second model over the tensors of another, with other maps: for sampling only."""

    attention: Callable[..., Tensor] = staticmethod(F.scaled_dot_product_attention)  # of one position over the cache


def _with_modules(model: DnDTransformer, make: Callable[[nn.Module], nn.Module | None]) -> SamplingTransformer:
    """Return a second model over the same tensors, the modules that `make` has an answer to replaced."""
    converted = SamplingTransformer.of_state(model.config, model.state_dict())
    _replace(converted, make)
    return converted.requires_grad_(False)


def _replace(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    for name, child in module.named_children():
        if (new := make(child)) is not None:
            setattr(module, name, new)
        else:
            _replace(child, make)
