"""Residual quantization with codebooks learned by moving averages (RQ-VAE, arXiv 2203.01941).

Shapes: B images, H x W latent positions of C channels, h x w code positions, D codes a position, V rows in a
codebook, E = C * (H/h) * (W/w) numbers a row, N = vectors to quantize (B * h * w on this rank).
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch._subclasses import FakeTensor

MAX_DISTANCES = 2**25  # distances held at once, so that 16,384 rows do not need gigabytes
SMOOTHING = 1e-5  # keeps a row without any vectors from dividing by zero


class RestartDraws:
    """Which vectors of the whole batch, over all ranks, restart rows; every rank draws the same.

    Each rank may hold any number of vectors, none too. The seed is taken from rank 0's global CPU generator, so a
    resumed run that restores it draws what it would have drawn.
    """

    def __init__(self, num_vectors: int, device: torch.device):
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        sizes = torch.zeros(world + 1, dtype=torch.int64, device=device)
        sizes[rank] = num_vectors
        if rank == 0:
            sizes[world] = torch.randint(2**62, ())
        *counts, seed = all_sum(sizes).tolist()
        self.generator = torch.Generator().manual_seed(seed)
        self.first = sum(counts[:rank])
        self.count = num_vectors
        self.total = sum(counts)

    def vectors(self, vectors: Tensor, num_rows: int) -> Tensor:
        """Draw [num_rows, E] vectors of the whole batch, without replacement while they last, then with noise."""
        dim = vectors.shape[1]
        rounds = -(-num_rows // max(self.total, 1))
        index = torch.cat([torch.randperm(self.total, generator=self.generator) for _ in range(rounds)])[:num_rows]
        mine = ((index >= self.first) & (index < self.first + self.count)).nonzero().flatten()
        picked = vectors.new_zeros(num_rows, dim)
        picked[mine.to(vectors.device)] = vectors[(index[mine] - self.first).to(vectors.device)]
        picked = all_sum(picked)
        if rounds > 1:
            noise = torch.rand(num_rows, dim, generator=self.generator) * (0.01 / dim**0.5)
            picked += noise.to(picked.device)
        return picked


class Codebook(nn.Module):
    """V rows of E numbers and their moving averages; one more row is padding, never chosen."""

    weight: Tensor
    cluster_size_ema: Tensor
    embed_ema: Tensor

    def __init__(self, num_rows: int, dim: int, decay: float, restart_unused_codes: bool):
        super().__init__()
        self.num_rows = num_rows
        self.decay = decay
        self.restart_unused_codes = restart_unused_codes
        weight = torch.cat([torch.randn(num_rows, dim), torch.zeros(1, dim)])
        self.register_buffer("weight", weight)
        self.register_buffer("cluster_size_ema", torch.zeros(num_rows))
        self.register_buffer("embed_ema", weight[:-1].clone())

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the nearest row [N] int64 of each of `vectors` [N, E] float32; of equal ones the first."""
        rows = self.weight[:-1].float()
        norms = rows.square().sum(1)
        chunks = vectors.split(max(1, MAX_DISTANCES // self.num_rows))
        return torch.cat([torch.addmm(norms, chunk, rows.t(), alpha=-2).argmin(1) for chunk in chunks])

    def embed(self, codes: Tensor) -> Tensor:
        """Return the rows [..., E] of `codes` [...]."""
        return nn.functional.embedding(codes, self.weight)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor, draws: RestartDraws) -> Tensor:
        """Move the averages towards `vectors` [N, E] and their `codes` [N]; return how many rows were restarted."""
        sizes, sums = self._statistics(vectors, codes)
        self.cluster_size_ema.mul_(self.decay).add_(sizes, alpha=1 - self.decay)
        self.embed_ema.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        unused = self.cluster_size_ema < 1
        if self.restart_unused_codes and draws.total > 0:
            self.embed_ema.copy_(torch.where(unused[:, None], draws.vectors(vectors, self.num_rows), self.embed_ema))
            self.cluster_size_ema.masked_fill_(unused, 1)
        self._refresh_weight()
        return unused.sum()

    def _statistics(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number [V] and sum [V, E] of the vectors at each row, over all ranks, in one collective."""
        ones = vectors.new_ones(len(vectors), 1)
        table = vectors.new_zeros(self.num_rows, vectors.shape[1] + 1)
        table = all_sum(table.index_add_(0, codes, torch.cat([vectors, ones], dim=1)))
        return table[:, -1], table[:, :-1]

    def _refresh_weight(self) -> None:
        total = self.cluster_size_ema.sum()
        sizes = total * (self.cluster_size_ema + SMOOTHING) / (total + self.num_rows * SMOOTHING)
        self.weight[:-1] = self.embed_ema / sizes[:, None]


class ResidualQuantizer(nn.Module):
    """D codes for each code position: each the nearest row to what the earlier ones left over.

    `fold` = (H/h, W/w): the block of latent positions under one code position, quantized as one vector.
    `restarts` [D] holds how many rows the last training step restarted, depth by depth.
    """

    restarts: Tensor

    def __init__(
        self,
        *,
        num_rows: int,
        channels: int,
        depth: int,
        fold: tuple[int, int] = (1, 1),
        shared_codebook: bool = True,
        decay: float = 0.99,
        restart_unused_codes: bool = True,
    ):
        super().__init__()
        self.fold = fold
        dim = channels * fold[0] * fold[1]
        books = [Codebook(num_rows, dim, decay, restart_unused_codes) for _ in range(1 if shared_codebook else depth)]
        self.codebooks = nn.ModuleList(books * depth if shared_codebook else books)
        self.register_buffer("restarts", torch.zeros(depth, dtype=torch.int64), persistent=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize `latents` [B, H, W, C]; in training mode the codebooks learn from them.

        Returns the quantized latents [B, H, W, C] (float32, gradients passed through), the commitment loss
        (mean over depths of the squared distance to the sum of the codes so far) and the codes [B, h, w, D] int64.
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = self.to_code_shape(latents.float())
            vectors = x.detach().flatten(0, 2)
            draws = RestartDraws(len(vectors), vectors.device) if self.training else None
            codes, partial_sums = self._quantize(vectors, draws)
            partial_sums = [partial.view(x.shape) for partial in partial_sums]
            loss = torch.stack([(x - partial).square().mean() for partial in partial_sums]).mean()
            passed = x + (partial_sums[-1] - x).detach()
        return self.to_latent_shape(passed), loss, codes.view(*x.shape[:3], len(self.codebooks))

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Return codes [B, h, w, D] int64 of `latents` [B, H, W, C]; the codebooks stay as they are."""
        with torch.autocast(latents.device.type, enabled=False):
            x = self.to_code_shape(latents.float())
            return self._quantize(x.flatten(0, 2))[0].view(*x.shape[:3], len(self.codebooks))

    def decode(self, codes: Tensor, depths: int | None = None) -> Tensor:
        """Return latents [B, H, W, C] of `codes` [B, h, w, D], sums of the first `depths` rows (default: all)."""
        depths = codes.shape[-1] if depths is None else depths
        if not 1 <= depths <= len(self.codebooks) or depths > codes.shape[-1]:
            raise ValueError(f"depths is {depths}: must be from 1 to {min(len(self.codebooks), codes.shape[-1])}")
        rows = [book.embed(codes[..., i]) for i, book in zip(range(depths), self._books)]
        return self.to_latent_shape(torch.stack(rows).sum(0))

    @property
    def _books(self) -> Iterable[Codebook]:
        return cast(Iterable[Codebook], self.codebooks)

    def to_code_shape(self, latents: Tensor) -> Tensor:
        """Fold [B, H, W, C] into [B, h, w, E]: each block of positions as one vector, by row, column, channel."""
        rows, columns = self.fold
        return rearrange(latents, "b (h r) (w s) c -> b h w (r s c)", r=rows, s=columns)

    def to_latent_shape(self, vectors: Tensor) -> Tensor:
        """Unfold [B, h, w, E] into [B, H, W, C], the inverse of `to_code_shape`."""
        rows, columns = self.fold
        return rearrange(vectors, "b h w (r s c) -> b (h r) (w s) c", r=rows, s=columns)

    @torch.no_grad()
    def _quantize(self, vectors: Tensor, draws: RestartDraws | None = None) -> tuple[Tensor, list[Tensor]]:
        """Codes [N, D] of `vectors` [N, E], and the sums [N, E] of the rows up to each depth.

        With `draws` each codebook learns from its residuals; a shared one is updated after every depth.
        """
        total = torch.zeros_like(vectors)
        codes = []
        partial_sums = []
        for depth, book in enumerate(self._books):
            residual = vectors - total
            codes.append(book.nearest(residual))
            total = total + book.embed(codes[-1])
            partial_sums.append(total)
            if draws:
                self.restarts[depth] = book.update(residual, codes[-1], draws)
        return torch.stack(codes, dim=-1), partial_sums


def count_codes(codes: Tensor, num_rows: int) -> Tensor:
    """Count how often each row was taken at each depth: int64 [D, num_rows] of `codes` [..., D]."""
    of_depth = codes.reshape(-1, codes.shape[-1]).unbind(-1)
    return torch.stack([torch.bincount(column, minlength=num_rows) for column in of_depth])


def codebook_health(counts: Tensor) -> tuple[list[float], list[float]]:
    """Return the share of rows used and the perplexity (1: collapsed) at each depth of `counts` [D, num_rows]."""
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    usage = (counts > 0).double().mean(1)
    return usage.tolist(), torch.special.entr(shares).sum(1).exp().tolist()


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum over the ranks, contiguous, `tensor` overwritten; of one process, or without bytes, what it gave.

    NCCL takes contiguous tensors only, which gradients of networks in channels last are not; and the layout decides the
    order in which a norm adds up, so it is one for all numbers of processes.
    """
    tensor = tensor.contiguous()
    if dist.is_initialized() and not isinstance(tensor, FakeTensor):  # memory.py counts without bytes
        dist.all_reduce(tensor)
    return tensor
