"""The training image that is nearest to a picture: of those whose perceptual hashes are nearest, by pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_specs import open_shards
from data_specs.reader import ShardSet
from data_specs.table import column
from pipeline.filters import perceptual_hash
from tokenize_jobs.views import center_view

CANDIDATES = 128  # images that are compared by pixels
SIDE = 32  # pixels, of what is compared


class Nearest(NamedTuple):
    """A training image, and the root mean square difference from a picture, both reduced to SIDE, of 255 levels."""

    key: str
    image: np.ndarray
    difference: float


def nearest(training: str, picture: np.ndarray) -> Nearest:
    """Return the training image nearest to a picture uint8 [H, W, 3].

    Args:
        training: address of the image set.

    Raises:
        ValueError: the set is not finished, or has no tables.
    """
    items = open_shards(training)
    differ = np.bitwise_count(_hashes(training, items.manifest.digest) ^ np.uint64(perceptual_hash(picture)))
    nearest_first = np.argsort(differ, kind="stable")[:CANDIDATES]
    return min((_compared(items, int(index), picture) for index in nearest_first), key=lambda found: found.difference)


@lru_cache(2)
def _hashes(training: str, digest: str) -> np.ndarray:
    """uint64 [n], in the order of the set with that digest."""
    items = open_shards(training)
    shards = zip(items.shard_uris, items.manifest.shardlist, strict=True)
    return np.concatenate([column(uri, "hash", entry) for uri, entry in shards])


def _compared(items: ShardSet, index: int, picture: np.ndarray) -> Nearest:
    item = items[index]
    side = min(picture.shape[:2])
    image = center_view(item["image"], side) if min(item["image"].shape[:2]) > side else item["image"]
    return Nearest(item["__key__"], image, float(np.sqrt(np.mean((_small(image) - _small(picture)) ** 2))))


def _small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
