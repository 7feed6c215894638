"""What a set of images is measured against. rFID asks for the originals of the same crop, gFID for the training set;
mixing them is the field's commonest mistake, so the kind, count, crop and digest are part of every result."""

import re
import zipfile
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from data_specs import storage
from data_specs.digest import file_digest
from data_specs.npy import one_parser
from data_specs.records import ReferenceInfo
from train.evaluation.sources import DAMAGED, ImageSet, local_file, open_images

TRAINING, ORIGINALS = "training", "validation-originals"
WANTED = {"gfid": TRAINING, "rfid": ORIGINALS}
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
ABOUT = {"kind": str, "crop": str, "extractor": str, "count": int}  # what a file may say of its statistics


class Gaussian(NamedTuple):
    """A set's mean [D] and covariance [D, D], float64."""

    mu: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class Reference:
    """`info` is the part of a result that says what was measured against.

    `images` and `pool` are each None where an `.npz` holds only the other; `pool` and `spatial` were precomputed.
    `extractor` names what made the statistics, where the file says so.
    """

    info: ReferenceInfo
    images: ImageSet | None
    pool: Gaussian | None = None
    spatial: Gaussian | None = None
    extractor: str | None = None


def open_reference(uri: str, kind: str | None = None, crop: str | None = None) -> Reference:
    """Open the reference at `uri`: images (see open_images) or an `.npz` of statistics.

    The `.npz` holds mu and sigma (and mu_s, sigma_s), with or without arr_0. `kind` may be left out where the
    source says it: an `.npz` with `kind` (and `crop`, `extractor`, `count`) beside its statistics, or a shard set
    under images/train or images/val.

    Args:
        kind: "training" or "validation-originals".
        crop: how the images were cut, for the result.

    Raises:
        ValueError: the kind is unknown or contradicts the source, or the statistics are broken.
    """
    stored = _read_statistics(uri) if uri.endswith(".npz") else {}
    kind = _settle_kind(uri, kind, stored.get("kind") or _kind_of_shards(uri))
    pool, spatial = _gaussian(uri, stored, ""), _gaussian(uri, stored, "_s")
    images = None if pool and "arr_0" not in stored["names"] else open_images(uri)
    digest = images.digest if images else file_digest(storage.local_copy(uri))
    count = stored.get("count") or (len(images) if images and not pool else None)
    made: Literal["computed", "precomputed"] = "precomputed" if pool else "computed"
    crop = crop or stored.get("crop")
    info = ReferenceInfo(uri=uri, kind=kind, count=count, crop=crop, digest=digest, statistics=made)
    return Reference(info, images, pool, spatial, stored.get("extractor"))


def check_reference(metric: str, reference: Reference, samples: ImageSet, forced: bool = False) -> list[str]:
    """Return why this reference does not fit the metric ("gfid" or "rfid") and the samples; [] where it does.

    Raises:
        ValueError: the first reason, unless `forced`: then the reasons go into the result.
    """
    if metric not in WANTED:
        raise ValueError(f"no metric {metric!r}: give gfid (generated images) or rfid (reconstructions)")
    problems = []
    kind = reference.info.kind
    if kind != WANTED[metric]:
        problems.append(f"{metric} is measured against {WANTED[metric]} images, this reference is {kind}")
    if metric == "rfid":
        problems += _pairing_problems(reference, samples)
    if problems and not forced:
        raise ValueError(
            f"{reference.info.uri}: {problems[0]}; give another reference, or force it (the result says so)"
        )
    return problems


def _read_statistics(uri: str) -> dict[str, Any]:
    """Everything but arr_0 of an `.npz`, and the names of all it holds."""
    path = local_file(uri)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{uri}: not an .npz file")
    try:
        with one_parser, np.load(path, allow_pickle=False) as file:
            stored: dict[str, Any] = {name: file[name].astype(np.float64) for name in STATISTICS if name in file}
            stored |= {name: type_(file[name].item()) for name, type_ in ABOUT.items() if name in file}
            if not 0 <= stored.get("count", 0) < 1 << 63:
                raise ValueError(f"count: {stored['count']} is no number of images")
            return {**stored, "names": file.files}
    except (OSError, ValueError, TypeError, OverflowError, *DAMAGED) as error:
        raise ValueError(f"{uri}: not an .npz of plain arrays ({error})") from error


def _gaussian(uri: str, stored: dict[str, Any], suffix: str) -> Gaussian | None:
    mu, sigma = stored.get("mu" + suffix), stored.get("sigma" + suffix)
    if mu is None and sigma is None:
        return None
    if mu is None or sigma is None or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{uri}: mu{suffix} [D] and sigma{suffix} [D, D] must come together and fit each other")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{uri}: mu{suffix} or sigma{suffix} is not finite")
    return Gaussian(mu, sigma)


def _kind_of_shards(uri: str) -> str | None:
    found = re.search(r"(?:^|/)images/(train|val)(?:/manifest\.json)?/?$", uri)
    return None if found is None else {"train": TRAINING, "val": ORIGINALS}[found.group(1)]


def _settle_kind(uri: str, said: str | None, stored: str | None) -> str:
    kinds = f"{TRAINING} or {ORIGINALS}"
    if said not in (None, TRAINING, ORIGINALS):
        raise ValueError(f"no kind of reference {said!r}: give {kinds}")
    if said and stored and said != stored:
        raise ValueError(f"{uri}: holds {stored} images, not {said}")
    kind = said or stored
    if not kind:
        raise ValueError(f"{uri}: does not say which images it holds; give the reference's kind: {kinds}")
    return kind


def _pairing_problems(reference: Reference, samples: ImageSet) -> list[str]:
    """rFID compares a set with its own originals: as many images, of the same size, under the same keys."""
    count = reference.info.count
    if count is not None and count != len(samples):
        return [f"{len(samples):,} reconstructions against {count:,} originals"]
    if reference.images is None:
        return []
    made, real = (images.shape[:2] for images in (samples, reference.images))
    if made != real:
        return [f"reconstructions of {made} pixels against originals of {real}: not the same crop"]
    keys = samples.keys()
    wanted = reference.images.keys()
    if keys and wanted and keys != wanted:
        return ["the reconstructions' keys are not those of the originals"]
    return []
