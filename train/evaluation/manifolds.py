"""Precision and recall by k-nearest-neighbour manifolds (Kynkäänniemi et al. 2019), as in the ADM evaluator with k = 3;
density and coverage (Naeem et al. 2020), as in the package prdc with k = 5.

prdc holds three whole distance matrices, 30 GB for two sets of 50,000; here all four come from one pass over blocks.
Distances are float32 throughout; ADM's float16 ones move the figures by .001 to .002.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
BLOCK = 4096


class Manifold(NamedTuple):
    """How samples and a reference lie to each other, each a share but density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(reference: np.ndarray, samples: np.ndarray, device: str = "cpu") -> Manifold:
    """Compare samples [M, D] with a reference [N, D], both float32 features.

    50,000 x 2048 features each take 20 TFLOP and 2 GiB of memory.

    Returns:
        precision: share of samples within the distance of some reference row to its third neighbour.
        recall: the other way round.
        density: reference rows within whose fifth neighbour a sample lies, on average, divided by five.
        coverage: share of reference rows with a sample within their fifth neighbour.

    Raises:
        ValueError: a set of no more than five rows, or of another dimension.
    """
    if reference.shape[1] != samples.shape[1]:
        raise ValueError(f"features of {reference.shape[1]} and {samples.shape[1]} dimensions cannot be compared")
    real, made = _tensor(reference, device), _tensor(samples, device)
    real_radii, made_radii = manifold_radii(real), manifold_radii(made)
    real_inside = torch.zeros(len(real), dtype=torch.bool, device=device)
    made_inside = torch.zeros(len(made), dtype=torch.bool, device=device)
    covered = torch.zeros_like(real_inside)
    hits = 0
    for rows, columns, distances in _distance_blocks(real, made):
        made_inside[columns] |= (distances <= real_radii[rows, NEIGHBOURS, None]).any(dim=0)
        real_inside[rows] |= (distances <= made_radii[None, columns, NEIGHBOURS]).any(dim=1)
        dense = distances < real_radii[rows, DENSITY_NEIGHBOURS, None]
        covered[rows] |= dense.any(dim=1)
        hits += int(dense.sum())
    precision, recall, coverage = (of.double().mean().item() for of in (made_inside, real_inside, covered))
    return Manifold(precision, recall, hits / (DENSITY_NEIGHBOURS * len(made)), coverage)


def manifold_radii(features: torch.Tensor) -> torch.Tensor:
    """Compute the squared distances of each row of features [N, D] to itself and its first five neighbours.

    They are in order -> [N, 6].
    """
    if len(features) <= DENSITY_NEIGHBOURS:
        needed = DENSITY_NEIGHBOURS + 1
        raise ValueError(f"{len(features)} images have no manifold; precision and recall need at least {needed} a set")
    nearest = features.new_full((len(features), DENSITY_NEIGHBOURS + 1), torch.inf)
    for rows, columns, distances in _distance_blocks(features, features, upper=True):
        _keep_nearest(nearest[rows], distances, dim=1)
        if columns != rows:
            _keep_nearest(nearest[columns], distances, dim=0)
    return nearest


def _keep_nearest(nearest: torch.Tensor, distances: torch.Tensor, dim: int) -> None:
    """Keep in nearest [n, k], in order, the k least of it and of distances ([n, m] for dim 1, [m, n] for dim 0)."""
    best = distances.topk(min(nearest.shape[1], distances.shape[dim]), dim=dim, largest=False).values
    candidates = torch.cat([nearest, best if dim == 1 else best.T], dim=1)
    nearest.copy_(candidates.topk(nearest.shape[1], dim=1, largest=False).values)


def _distance_blocks(
    u: torch.Tensor, v: torch.Tensor, upper: bool = False
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Squared Euclidean distances in blocks (rows of u, rows of v, [rows, columns]), a row of blocks at a time.

    upper: only the blocks on and above the diagonal, for u against itself: half of the work."""
    u_norms = u.square().sum(dim=1)
    v_norms = v.square().sum(dim=1)
    for i in range(0, len(u), BLOCK):
        rows = slice(i, min(i + BLOCK, len(u)))
        for j in range(i if upper else 0, len(v), BLOCK):
            columns = slice(j, min(j + BLOCK, len(v)))
            products = u[rows] @ v[columns].T
            distances = products.mul_(-2).add_(u_norms[rows, None]).add_(v_norms[None, columns])
            yield rows, columns, distances.clamp_(min=0)


def _tensor(features: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(device)
