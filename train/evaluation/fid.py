"""The FID family over sets of images: features on slices (one a rank), merged, and every figure with its true name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from train.evaluation.features import Extractor, load_extractor
from train.evaluation.frechet import Moments, frechet_distance
from train.evaluation.inception_score import ScoreSums
from train.evaluation.manifolds import NEIGHBOURS, precision_recall
from train.evaluation.references import Gaussian, Reference, check_reference
from train.evaluation.sources import ImageSet, open_images, slice_of

BATCH = 64
MANIFOLD_IMAGES = 50_000  # larger sets are thinned evenly to this many for precision and recall


@dataclass
class SetFeatures:
    """What is kept of (a slice of) a set: moments of pool and spatial features, score sums, and pool rows [n, D]."""

    pool: Moments
    spatial: Moments | None
    scores: ScoreSums | None
    rows: np.ndarray

    def merge(self, other: SetFeatures) -> None:
        """Take in the slice that follows this one."""
        self.pool.merge(other.pool)
        if self.spatial is not None and other.spatial is not None:
            self.spatial.merge(other.spatial)
        if self.scores is not None and other.scores is not None:
            self.scores.merge(other.scores)
        self.rows = np.concatenate([self.rows, other.rows])


def extract(images: ImageSet, extractor: Extractor, rank: int = 0, num_ranks: int = 1) -> SetFeatures:
    """Features of one rank's slice of a set; `merge` the ranks' results in their order.

    Memory: one batch of 64 images, the moments, and at most 50,000 pool rows over all ranks."""
    start, stop = slice_of(len(images), rank, num_ranks)
    result: SetFeatures | None = None
    rows: list[np.ndarray] = []
    for number, batch in enumerate(images.batches(start, stop, BATCH)):
        features, first = extractor(batch), start + number * BATCH
        result = result or _empty(features.pool, features.spatial, features.logits)
        result.pool.add(features.pool)
        if result.spatial is not None and features.spatial is not None:
            result.spatial.add(features.spatial)
        if result.scores is not None and features.logits is not None:
            result.scores.add(features.logits, first)
        rows.append(features.pool[_kept(first, len(batch), len(images))])
    if result is None:
        raise ValueError(f"{images.uri}: rank {rank} of {num_ranks} has no images; use fewer ranks")
    result.rows = np.concatenate(rows)
    return result


def extract_slice(uri: str, extractor: str, rank: int, num_ranks: int, device: str = "cpu") -> SetFeatures:
    """`extract` by names alone, to run in another process: a set's URI and an extractor as load_extractor takes it."""
    return extract(open_images(uri), load_extractor(extractor, device), rank, num_ranks)


def evaluate_images(
    metric: str,
    samples: ImageSet,
    reference: Reference,
    extractor: Extractor,
    *,
    forced: bool = False,
    device: str = "cpu",
    sample_features: SetFeatures | None = None,
    reference_features: SetFeatures | None = None,
) -> dict[str, Any]:
    """FID, sFID, Inception Score, precision and recall of samples against a reference, with all that was assumed.

    metric: "gfid" (against the training set) or "rfid" (against the same-crop originals). Features that ranks have
    extracted already are taken as they are. Figures are called FID only where the extractor is the published
    Inception; else its name stands in theirs. What cannot be computed is left out and said in `notes`.
    Raises ValueError for a reference of the wrong kind unless forced, and for fewer images than features."""
    problems = check_reference(metric, reference, samples, forced)
    if reference.pool is not None and reference.extractor not in (None, extractor.name):
        raise ValueError(f"{reference.uri}: statistics of {reference.extractor}, but the extractor is {extractor.name}")
    made = sample_features or extract(samples, extractor)
    real = reference_features
    if real is None and reference.images is not None:
        real = extract(reference.images, extractor)
    figures, notes = _figures(made, real, reference, device)
    return {
        "metric": metric,
        "figures": {_figure_name(name, metric, extractor): value for name, value in figures.items()},
        "extractor": {"name": extractor.name, "digest": extractor.digest, "dim": len(made.pool.mean)},
        "samples": {"uri": samples.uri, "count": len(samples), "digest": samples.digest},
        "reference": reference.describe(),
        "manifolds": {"neighbours": NEIGHBOURS, "samples": len(made.rows), "reference": len(real.rows) if real else 0},
        "forced": problems,
        "notes": notes,
    }


def _figures(
    made: SetFeatures, real: SetFeatures | None, reference: Reference, device: str
) -> tuple[dict[str, float], list[str]]:
    """Figures under their plain names, and why others are missing."""
    figures = {"fid": frechet_distance(*_fit(made.pool), *(reference.pool or _fit(_known(real).pool)))}
    notes = []
    if made.spatial is not None:
        spatial = reference.spatial or (_fit(real.spatial) if real and real.spatial and not reference.pool else None)
        if spatial is None:
            notes.append("no sFID: the reference's statistics have no mu_s and sigma_s")
        else:
            figures["sfid"] = frechet_distance(*_fit(made.spatial), *spatial)
    if made.scores is not None:
        figures["inception_score"] = made.scores.score()
    if real is None:
        notes.append("no precision and recall: the reference holds statistics alone, no images (arr_0)")
    else:
        figures["precision"], figures["recall"] = precision_recall(real.rows, made.rows, device)
        notes.append("precision and recall in float32: the ADM evaluator's float16 moves them by .001 to .002")
    return figures, notes


def _figure_name(name: str, metric: str, extractor: Extractor) -> str:
    """ "fid" -> "gfid" or "rfid" under the published Inception, else with the extractor's name and never FID."""
    if extractor.is_fid:
        return metric if name == "fid" else name
    plain = {"fid": "frechet_distance", "sfid": "spatial_frechet_distance"}.get(name, name)
    return f"{plain}[{extractor.name}]"


def _empty(pool: np.ndarray, spatial: np.ndarray | None, logits: np.ndarray | None) -> SetFeatures:
    return SetFeatures(
        Moments(pool.shape[1]),
        None if spatial is None else Moments(spatial.shape[1]),
        None if logits is None else ScoreSums(logits.shape[1]),
        np.zeros((0, pool.shape[1]), np.float32),
    )


def _kept(first: int, count: int, total: int) -> np.ndarray:
    """Which of the images first ... first + count - 1 of `total` stay for precision and recall -> bool [count]."""
    index = np.arange(first, first + count, dtype=np.int64)
    keep = min(total, MANIFOLD_IMAGES)
    return (index + 1) * keep // total > index * keep // total


def _fit(moments: Moments) -> Gaussian:
    return Gaussian(moments.mean, moments.covariance())


def _known(features: SetFeatures | None) -> SetFeatures:
    assert features is not None, "a reference without statistics has images"
    return features
