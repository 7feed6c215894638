"""What a training step should take on a GPU: products at a share of its peak, all else at a share of its bandwidth.

python -m benchmarks.roofline            the table of docs/gpu.md

Bytes are counted on the graphs of one layer, forward and backward, that autograd and the compiler make: unfused every
operator reads its inputs and writes its result; fused, what lies between two products is one kernel, which reads what
comes from outside of it once and writes what is wanted outside. Attention counts as a product.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from functorch.compile import default_partition, make_boxed_func, min_cut_rematerialization_partition
from torch import fx
from torch._decomp import core_aten_decompositions
from torch._dynamo.backends.common import aot_autograd

from data_specs.spec import load_spec
from train.flops import PEAK_FLOPS, gpu_model, image_flops, num_parameters
from train.memory import Kernels
from train.model import Block, TransformerConfig, config_of, rotary_factors

BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "H800": 3.35e12, "A100": 2.0e12, "A800": 2.0e12, "L40S": 0.864e12}
PRODUCTS_SHARE, BANDWIDTH_SHARE = 0.75, 0.9  # assumed: what large products reach of the peak, and copies of bandwidth
KERNEL = 2e-6  # seconds from one kernel to the next, assumed
LOSS_BYTES = {"eager": 54, "fused": 14, "compiled": 14}  # a logit: float32 copies, log-sum-exp, subtraction, exponent
STEP_BYTES = 34  # a parameter: AdamW reads and writes weight and moments, the average, gradients and bfloat16 weights
PRODUCTS = ("mm", "addmm", "bmm", "scaled_dot_product", "linear")
POSITIONS = 16  # that are counted


def estimated_mfu(config: TransformerConfig, micro: int, kernels: Kernels, device: torch.device) -> float | None:
    """Share of the peak that a step of `micro` images should reach; None for devices that are not known."""
    name = gpu_model(device)
    return None if name is None else mfu(config, micro, kernels, name)


def mfu(config: TransformerConfig, micro: int, kernels: Kernels, name: str) -> float:
    """Share of the peak of the GPU `name` that a step of `micro` images should reach."""
    flops = micro * image_flops(config)
    return flops / PEAK_FLOPS[name] / step_seconds(config, micro, kernels, name)


def step_seconds(config: TransformerConfig, micro: int, kernels: Kernels, name: str) -> float:
    """Return the seconds of a step of `micro` images."""
    products = micro * image_flops(config) / (PRODUCTS_SHARE * PEAK_FLOPS[name])
    rest = other_bytes(config, micro, kernels) / (BANDWIDTH_SHARE * BANDWIDTH[name])
    _, launched = of_layer(config.dim, config.num_heads, kernels)
    return products + rest + KERNEL * launched * config.num_layers


def other_bytes(config: TransformerConfig, micro: int, kernels: Kernels) -> float:
    """Return the bytes that a step reads and writes outside of its products."""
    positions = micro * config.num_positions
    layer, _ = of_layer(config.dim, config.num_heads, kernels)
    logits = positions * config.depth * config.codebook_size * LOSS_BYTES[kernels]
    return config.num_layers * positions * layer + logits + STEP_BYTES * num_parameters(config)


@cache
def of_layer(width: int, heads: int, kernels: Kernels) -> tuple[float, int]:
    """Count the bytes a position and the kernels of one layer in bfloat16, outside of its products.

    Both are of forward and backward.

    On a CPU attention computes in float32, so that the layer is counted in it: half of that is bfloat16's.
    """
    config = TransformerConfig(1, heads, width, 2, (4, 4), (0,))
    block = Block(config).train()
    cosine, sine = rotary_factors(config, "cpu")
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    fused = kernels != "eager"
    backend = aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        partition_fn=min_cut_rematerialization_partition if fused else default_partition,
        decompositions=core_aten_decompositions() if fused else {},
    )
    torch._dynamo.reset()
    h = torch.randn(1, POSITIONS, width, requires_grad=True)
    torch.compile(block, backend=backend, fullgraph=True)(h, (cosine[:POSITIONS], sine[:POSITIONS])).sum().backward()
    found = [_traffic(graph, fused) for graph in graphs]
    return sum(size for size, _ in found) / POSITIONS / 2, sum(number for _, number in found)


def _traffic(graph: fx.GraphModule, fused: bool) -> tuple[float, int]:
    """Bytes and kernels of a graph."""
    nodes = [node for node in graph.graph.nodes if _is_kernel(node)]
    group = {node: number for number, node in enumerate(nodes)}
    products = sum(node.op == "call_function" and _is_product(node) for node in graph.graph.nodes)
    edges = [(source, node) for node in nodes for source in _sources(node)]
    for source, node in edges if fused else ():  # what hands a tensor to another kernel is one kernel with it
        if source in group:
            _join(group, group[source], group[node])
    reads = {(group[node], source) for source, node in edges if not fused or group.get(source) != group[node]}
    writes = [node for node in nodes if not fused or any(user not in group for user in _users(node))]
    weights = _matrices(graph)
    moved = sum(_bytes(source) for _, source in reads if source not in weights) + sum(map(_bytes, writes))
    return moved, len(set(group.values())) + products


def _join(group: dict[fx.Node, int], one: int, other: int) -> None:
    for node, number in group.items():
        if number == other:
            group[node] = one


def _matrices(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the inputs that are not activations: weights and the rotary tables."""
    return {node for node in graph.graph.nodes if node.op == "placeholder" and _rows(node) != POSITIONS}


def _rows(node: fx.Node) -> int:
    value = node.meta.get("val")
    return POSITIONS if isinstance(value, torch.Tensor) and POSITIONS in value.shape and value.dim() != 4 else 0


def _is_view(node: fx.Node) -> bool:
    is_view = getattr(node.target, "is_view", False) or node.target is operator.getitem
    return node.op == "call_function" and is_view


def _is_product(node: fx.Node) -> bool:
    return any(name in str(node.target) for name in PRODUCTS)


def _is_kernel(node: fx.Node) -> bool:
    return node.op == "call_function" and not _is_view(node) and not _is_product(node)


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that a node reads, looking through views."""
    return [_sources(source)[0] if _is_view(source) else source for source in node.all_input_nodes]


def _users(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read a node, looking through views."""
    return [end for user in node.users for end in (_users(user) if _is_view(user) else [user])]


def _bytes(node: fx.Node) -> int:
    values = node.meta.get("val")
    values = values if isinstance(values, (tuple, list)) else [values]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def main() -> None:
    """Print the table."""
    sys.stdout.write("| model | micro batch | FLOP | bytes, eager | bytes, compiled | MFU, eager | MFU, compiled |\n")
    for preset in ("imagenet_16x16x2", "imagenet_16x16x2_xxxl", "arxiv_image_16x16x8", "text_image_24x24x1"):
        config = config_of(load_spec(preset))
        for micro in (8, 32):
            sizes = [f"{other_bytes(config, micro, kernels) / 1e9:.0f} GB" for kernels in ("eager", "compiled")]
            shares = [f"{mfu(config, micro, kernels, 'H100'):.0%}" for kernels in ("eager", "compiled")]
            cells = [preset, str(micro), f"{micro * image_flops(config) / 1e12:.1f} T", *sizes, *shares]
            sys.stdout.write("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
