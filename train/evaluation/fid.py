"""The FID family over sets of images: features of pieces of a set, merged, and every figure with its true name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from data_specs.records import ExtractorInfo, ImageScores, Metric
from train.evaluation.features import Extractor, Features
from train.evaluation.frechet import (
    Moments,
    frechet_distance,
    kernel_distance,
    refuse_other_features,
    refuse_too_few,
)
from train.evaluation.inception_score import SEED, SPLIT, ScoreSums, shuffled_places
from train.evaluation.manifolds import DENSITY_NEIGHBOURS, NEIGHBOURS, compare_manifolds
from train.evaluation.references import Gaussian, Reference, check_reference
from train.evaluation.sources import ImageSet

BATCH = 64
PIECE = 16 * BATCH  # images whose features go into the moments together; what a worker takes at a time
WHOLE = 50_000  # images of a figure that papers report; FID falls with their number
MANIFOLD_IMAGES = 50_000  # larger sets are thinned evenly to this many for precision and recall

Sums = TypeVar("Sums", Moments, ScoreSums)


@dataclass(frozen=True)
class SetFeatures:
    """What is kept of (a piece of) a set: moments of pool and spatial features, score sums, and pool rows [n, D]."""

    pool: Moments
    spatial: Moments | None
    scores: ScoreSums | None
    rows: np.ndarray


def extract(images: ImageSet, extractor: Extractor) -> SetFeatures:
    """Extract the features of a whole set, here.

    Memory: features of 1,024 images, the moments, and at most 50,000 pool rows.
    """
    return merge(pieces(images, extractor, 0, len(images)))


def pieces(images: ImageSet, extractor: Extractor, start: int, stop: int) -> Iterator[SetFeatures]:
    """Yield the features of the images start ... stop - 1, 1,024 at a time."""
    passes = map(extractor, images.batches(start, stop, BATCH))
    for first in range(start, stop, PIECE):
        yield _piece(_joined(islice(passes, PIECE // BATCH)), first, len(images))


def merge(parts: Iterable[SetFeatures]) -> SetFeatures:
    """Merge the pieces of one set, in their order; the same pieces give the same bits whoever made them."""
    pieces_in_order = iter(parts)
    whole = next(pieces_in_order)
    rows = [whole.rows]
    for part in pieces_in_order:
        rows.append(part.rows)
        sums = whole.pool + part.pool, _both(whole.spatial, part.spatial), _both(whole.scores, part.scores)
        whole = SetFeatures(*sums, whole.rows)
    return replace(whole, rows=np.concatenate(rows))


def evaluate_images(
    metric: Metric,
    samples: ImageSet,
    reference: Reference,
    extractor: Extractor,
    *,
    forced: bool = False,
    device: str = "cpu",
    extract_set: Callable[[ImageSet], SetFeatures] | None = None,
) -> ImageScores:
    """Compute FID, sFID, KID, Inception Score, precision, recall, density and coverage, with all that was assumed.

    Figures are called FID only where the extractor is the published Inception; else its name stands in theirs. A gFID
    of fewer than 50,000 samples has their number in its name. What cannot be computed is left out and said in `notes`.

    Args:
        metric: "gfid" (against the training set) or "rfid" (against the same-crop originals).
        samples: what is scored.
        reference: what it is measured against.
        extractor: makes the features.
        forced: accept a reference of the wrong kind.
        device: where distances are computed.
        extract_set: how a set's features are made (default: here, by `extract`).

    Raises:
        ValueError: a reference of the wrong kind, statistics of other features, no more images than features; all of
            it before features are extracted.
    """
    problems = check_reference(metric, reference, samples, forced)
    _refuse_unfit(samples, reference, extractor)
    make = extract_set or (lambda images: extract(images, extractor))
    made = make(samples)
    real = make(reference.images) if reference.images is not None else None
    figures, notes = _figures(made, real, reference, device)
    return ImageScores(
        metric=metric,
        figures={_figure_name(name, metric, extractor, len(samples)): value for name, value in figures.items()},
        extractor=ExtractorInfo(name=extractor.name, digest=extractor.digest, dim=len(made.pool.mean)),
        samples=samples.describe(),
        reference=reference.info,
        manifolds={
            "neighbours": NEIGHBOURS,
            "density_neighbours": DENSITY_NEIGHBOURS,
            "samples": len(made.rows),
            "reference": len(real.rows) if real else 0,
        },
        forced=tuple(problems),
        notes=tuple(notes),
    )


def _refuse_unfit(samples: ImageSet, reference: Reference, extractor: Extractor) -> None:
    """Refuse at once what would otherwise be refused after hours of computing features.

    One image tells how many features it has.

    Raises:
        ValueError: there are too few images, or the features are not those of the reference.
    """
    if reference.pool is not None and reference.extractor not in (None, extractor.name):
        raise ValueError(
            f"{reference.info.uri}: statistics of {reference.extractor}, but the extractor is {extractor.name}"
        )
    dim = extractor(next(samples.batches(0, 1, 1))).pool.shape[1]
    refuse_too_few(len(samples), dim)
    if reference.pool is not None:
        refuse_other_features(dim, len(reference.pool.mu))
    elif reference.images is not None:
        refuse_too_few(len(reference.images), dim)


def _figures(
    made: SetFeatures, real: SetFeatures | None, reference: Reference, device: str
) -> tuple[dict[str, float], list[str]]:
    """Figures under their plain names, and why others are missing."""
    pool = reference.pool or (_fit(real.pool) if real else None)
    assert pool is not None, "a reference without statistics has images"
    figures = {"fid": frechet_distance(*_fit(made.pool), *pool)}
    notes = []
    if made.spatial is not None:
        spatial = reference.spatial or (_fit(real.spatial) if real and real.spatial and not reference.pool else None)
        if spatial is None:
            notes.append("no sFID: the reference's statistics have no mu_s and sigma_s")
        else:
            figures["sfid"] = frechet_distance(*_fit(made.spatial), *spatial)
    if made.scores is not None:
        figures["inception_score"] = made.scores.score()
        notes.append(f"Inception Score over splits of {SPLIT:,} of a permutation of the samples (seed {SEED})")
    if real is None:
        notes.append("no precision and recall, KID, density, coverage: the reference holds no images (arr_0)")
        return figures, notes
    figures |= compare_manifolds(real.rows, made.rows, device)._asdict()
    notes.append("precision and recall in float32: the ADM evaluator's float16 moves them by .001 to .002")
    distance, note = kernel_distance(real.rows, made.rows)
    return figures | ({} if distance is None else {"kid": distance}), [*notes, note]


def _figure_name(name: str, metric: str, extractor: Extractor, count: int) -> str:
    """ "fid" -> "gfid" or "rfid" under the published Inception, else with the extractor's name and never FID; a gFID of
    fewer than 50,000 samples -> "gfid[5,000 images]"."""
    if extractor.is_fid:
        few = metric == "gfid" and name == "fid" and count < WHOLE
        return (f"{metric}[{count:,} images]" if few else metric) if name == "fid" else name
    plain = {"fid": "frechet_distance", "sfid": "spatial_frechet_distance", "kid": "kernel_distance"}.get(name, name)
    return f"{plain}[{extractor.name}]"


def _joined(passes: Iterable[Features]) -> Features:
    """Features of consecutive batches as one."""
    kinds = zip(*passes, strict=True)
    return Features(*(None if kind[0] is None else np.concatenate(kind) for kind in kinds))  # type: ignore[arg-type]


def _piece(features: Features, first: int, total: int) -> SetFeatures:
    """Return what is kept of the features of images `first`, first + 1, … of `total`."""
    here = slice(first, first + len(features.pool))
    return SetFeatures(
        Moments.of(features.pool),
        None if features.spatial is None else Moments.of(features.spatial),
        None if features.logits is None else ScoreSums.of(features.logits, shuffled_places(total)[here]),
        features.pool[_kept(first, len(features.pool), total)],
    )


def _both(one: Sums | None, other: Sums | None) -> Sums | None:
    return None if one is None or other is None else one + other


def _kept(first: int, count: int, total: int) -> np.ndarray:
    """Which of the images first ... first + count - 1 of `total` stay for precision and recall -> bool [count]."""
    index = np.arange(first, first + count, dtype=np.int64)
    keep = min(total, MANIFOLD_IMAGES)
    return (index + 1) * keep // total > index * keep // total


def _fit(moments: Moments) -> Gaussian:
    return Gaussian(moments.mean, moments.covariance())
