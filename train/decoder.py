"""The fast decoder: one step takes a whole batch through one position, all depths of it, over caches written in place.

A step reads and writes only tensors that stay where they are (caches, codes, the position itself), so the host never
waits for the device and, on a GPU, steps are replayed as CUDA graphs. On a CPU they run as they are (docs/sampling.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from train.model import Attend, DnDTransformer, rotary_factors

LENGTH_BUCKET = 32  # keys seen by a captured step are rounded up to this; one graph is captured for each length

Pick = Callable[[Tensor, int, Tensor], Tensor]  # (hidden state [R, 1, C], depth, position [1]) -> codes [R, 1]


class Decoder:
    """Caches and buffers for `rows` sequences decoded together, and the step that advances them by one position.

    Use `start`, then `step` for each position in turn. Fewer rows than at the start may take part from some position
    on. `pick` turns the normed hidden state of a depth into codes and keeps what the caller wants of them; it is not
    kept, since who has the buffers also has the decoder, and neither would be freed before Python looks for cycles.
    """

    def __init__(self, model: DnDTransformer, rows: int) -> None:
        config = model.config
        weight = model.tok_embeddings.weight
        self.model = model
        self.device = weight.device
        self.attention: Callable[..., Tensor] = getattr(model, "attention", F.scaled_dot_product_attention)
        shape = (config.num_layers, 2, rows, config.num_heads, config.num_positions, config.dim // config.num_heads)
        self.caches = torch.zeros(shape, dtype=weight.dtype, device=self.device).unbind()
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.positions = torch.arange(config.num_positions, device=self.device)
        self.cosine, self.sine = rotary_factors(config, self.device)
        self.classes = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.codes = torch.zeros(rows, config.depth, dtype=torch.int64, device=self.device)  # of the last position
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    def start(self, classes: Tensor) -> None:
        """Begin sequences with these classes [rows]. Old keys need no clearing: no step looks past its position."""
        self.classes.copy_(classes)
        self.position.zero_()

    def step(self, position: int, rows: int, pick: Pick) -> None:
        """Decode grid position `position` of the first `rows` sequences; on a GPU always with the same `pick`."""
        if self.device.type == "cuda":
            length = -(-(position + 1) // LENGTH_BUCKET) * LENGTH_BUCKET
            with torch.cuda.device(self.device):
                self._replay(min(length, len(self.positions)) if position else 0, rows, pick)
        else:
            self._advance(position + 1 if position else 0, rows, pick)

    def _advance(self, length: int, rows: int, pick: Pick) -> None:
        """Make one step over the first `length` keys; length 0 is the class's own step."""
        model = self.model
        if length:
            h = model.tok_embeddings(self.codes[:rows]).sum(1, keepdim=True)
            mask = self._mask(length, h.dtype) if self.device.type == "cuda" else None
            attentions = [self._attend_to(cache, length, rows, mask) for cache in self.caches]
        else:
            h = model.cls_embedding(self.classes[:rows])
            attentions = [self._attend_to_class(cache, rows) for cache in self.caches]
        rotary = self.cosine.index_select(0, self.position), self.sine.index_select(0, self.position)

        def head(depth: int, hidden: Tensor) -> Tensor:
            codes = pick(hidden, depth, self.position)
            self.codes[:rows, depth] = codes[:, 0]
            return codes

        model.run_layers(h, rotary, head, attentions)
        self.position += 1

    def _mask(self, length: int, dtype: torch.dtype) -> Tensor:
        """Return what a captured step, for several positions, adds to the scores of `length` keys: [1, 1, 1, length].

        A mask of booleans would be made into this by three kernels in every layer.
        """
        return torch.zeros(1, 1, 1, length, dtype=dtype, device=self.positions.device).masked_fill_(
            self.positions[:length] > self.position, -torch.inf
        )

    def _attend_to(self, cache: Tensor, length: int, rows: int, mask: Tensor | None) -> Attend:
        keys, values = cache[:, :rows].unbind()

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for old, new in ((keys, k), (values, v)):
                if mask is not None:
                    old.index_copy_(2, self.position, new.transpose(1, 2))
                else:
                    old[:, :, length - 1] = new[:, 0]
            seen = q.transpose(1, 2), keys[:, :, :length], values[:, :, :length]
            out = F.scaled_dot_product_attention(*seen, mask) if mask is not None else self.attention(*seen)
            return out.transpose(1, 2)

        return attend

    def _attend_to_class(self, cache: Tensor, rows: int) -> Attend:
        """Return the attention for the class position, whose q and k are zero and which sees only itself.

        Its result is therefore v; the cached key stays zero.
        """

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache[1, :rows, :, 0] = v[:, 0]
            return v

        return attend

    def _replay(self, length: int, rows: int, pick: Pick) -> None:
        """Run the step as a CUDA graph, captured the first time this length and number of rows are met."""
        key = (length, rows)
        if key not in self.graphs:
            self.graphs[key] = self._capture(length, rows, pick)
        self.graphs[key].replay()

    def _capture(self, length: int, rows: int, pick: Pick) -> torch.cuda.CUDAGraph:
        """Capture one step. The warm-up runs it for real, so what it changed is put back; what it wrote to the caches
        and to `pick`'s buffers at this position is written again by the replay."""
        codes = self.codes.clone()
        position = self.position.clone()
        stream = _capture_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._advance(length, rows, pick)
        torch.cuda.current_stream().wait_stream(stream)
        self.codes.copy_(codes)
        self.position.copy_(position)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            self._advance(length, rows, pick)
        return graph


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a device on which steps are captured: cuBLAS keeps 32 MiB for each that it ever saw."""
    return torch.cuda.Stream(device)
