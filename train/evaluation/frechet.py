"""Distances between sets of features: Frechet's over moments streamed in float64, as the ADM evaluator has it, and KID
(Bińkowski et al. 2018), as torch-fidelity computes it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from scipy import linalg

from train.evaluation.vision_ops import import_torchvision

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID
EPS = 1e-6
MAX_IMAGINARY = 1e-3


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and scatter [D, D] of feature rows, float64. Those of parts of a set add up."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Return the moments of features [n, D]."""
        rows = features.astype(np.float64)
        mean = rows.mean(axis=0)
        rows -= mean
        return cls(len(rows), mean, rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of two parts of a set as one (Chan, Golub and LeVeque 1979)."""
        total = self.count + other.count
        shift = other.mean - self.mean
        between = np.outer(shift, shift) * (self.count * other.count / total)
        return Moments(total, self.mean + shift * (other.count / total), self.scatter + other.scatter + between)

    def covariance(self) -> np.ndarray:
        """Return the unbiased covariance [D, D].

        Raises:
            ValueError: no more rows than dimensions: it would be singular.
        """
        refuse_too_few(self.count, len(self.mean))
        return self.scatter / (self.count - 1)


def refuse_too_few(count: int, dim: int) -> None:
    """Refuse a set with no more images than features.

    Raises:
        ValueError: there are no more images than features.
    """
    if count <= dim:
        raise ValueError(
            f"{count:,} images for {dim:,} features: the covariance is singular and the distance means nothing; "
            f"give more than {dim:,} images (papers take 50,000), or an extractor of fewer features"
        )


def refuse_other_features(dim: int, other: int) -> None:
    """Refuse two sets whose numbers of features differ.

    Raises:
        ValueError: the numbers differ.
    """
    if dim != other:
        raise ValueError(
            f"statistics of {dim:,} and {other:,} features: they come from different extractors; "
            "make the reference's statistics with the extractor of the samples"
        )


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Compute |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), mu [D], sigma [D, D], float64.

    Where the root of the product is not finite, 1e-6 is added to both diagonals, as in the ADM evaluator and TTUR.

    Raises:
        ValueError: differing dimensions, and where the root stays imaginary (too few images).
    """
    refuse_other_features(len(mu1), len(mu2))
    root = _sqrtm(sigma1 @ sigma2)
    if not np.isfinite(root).all():
        warnings.warn(f"the covariances' product is singular; {EPS} was added to their diagonals", stacklevel=2)
        offset = np.eye(len(sigma1)) * EPS
        root = _sqrtm((sigma1 + offset) @ (sigma2 + offset))
    if not np.allclose(np.diagonal(root).imag, 0, atol=MAX_IMAGINARY):
        raise ValueError("the root of the covariances' product is imaginary: too few images for their features")
    shift = mu1 - mu2
    return float(shift @ shift + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root.real))


def _sqrtm(matrix: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", linalg.LinAlgWarning)  # singular: the caller looks at the result itself
        return linalg.sqrtm(matrix)


def kernel_distance(reference: np.ndarray, samples: np.ndarray) -> tuple[float | None, str]:
    """Compute the unbiased squared maximum mean discrepancy of features [N, D] and [M, D].

    The kernel is (x y / D + 1)^3.

    Returns:
        The mean over 100 subsets of at most 1,000 rows of each set, None without torch-fidelity; and how it was made.
    """
    if find_spec("torch_fidelity") is None:
        return None, "no KID: torch-fidelity is not installed (pip install torch-fidelity)"
    import_torchvision()
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(SUBSET_SIZE, len(reference), len(samples))
    sets = (torch.from_numpy(rows) for rows in (samples, reference))
    score = kid_features_to_metric(*sets, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False)
    return float(score[KEY_METRIC_KID_MEAN]), f"KID by torch-fidelity: mean over {SUBSETS} subsets of {size:,}"
