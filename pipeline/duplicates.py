"""Near duplicates over a whole image set (`dnd duplicates ROOT`): the hashes in the shards' tables, compared in bands.

Two hashes of 64 bits that differ in at most d bits agree on at least two of d + 2 bands, so only those that do are
compared. Hashes lie in a file; memory holds one partition of one band at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from data_specs import storage
from data_specs.progress import Progress
from data_specs.reader import ShardSet, open_shards
from data_specs.scratch import scratch_folder
from data_specs.sources.planning import SPLITS
from data_specs.table import column

PARTITION = 1 << 22  # hashes that are sorted at a time


def near_duplicates(root: str, distance: int) -> Iterator[list[str]]:
    """Yield groups of near duplicates of ROOT/images as SPLIT/UNIT/KEY, the first in the order of the set first.

    A group is a chain: each member is within `distance` bits of another.

    Raises:
        ValueError: a set is unfinished.
    """
    sets = [open_shards(storage.join(root, "images", split)) for split in SPLITS]
    with scratch_folder() as folder:
        hashes = _hashes(sets, folder / "hashes")
        for group in groups(hashes, distance, folder):
            yield [_name(sets, int(index)) for index in group]


def _name(sets: Sequence[ShardSet], index: int) -> str:
    """SPLIT/UNIT/KEY of a picture, by its number in sets one behind the other."""
    for pictures in sets:
        if index < len(pictures):
            break
        index -= len(pictures)
    shard, number = pictures.locate(index)
    split, name = pictures.shard_uris[shard].split("/")[-2:]
    return f"{split}/{int(name.partition('-')[0])}/{pictures.shard(shard).key(number)}"


def _hashes(sets: Sequence[ShardSet], path: Path) -> np.ndarray:
    """Map the hash of every picture, uint64 [n], into memory, in the order of the sets; from the shards' tables."""
    shards = [shard for one in sets for shard in zip(one.shard_uris, one.manifest.shardlist, strict=True)]
    progress = Progress("reading tables", len(shards), "shards")
    with path.open("wb") as file:
        for uri, entry in shards:
            file.write(column(uri, "hash", entry).tobytes())
            progress.advance()
    progress.finish()
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else np.zeros(0, np.uint64)


def groups(hashes: np.ndarray, distance: int, folder: Path) -> Iterator[np.ndarray]:
    """Yield the rising indices int64 of each group of two or more of the uint64 [n] hashes.

    The members of a group are joined in chains of `distance` bits.
    """
    parent = np.memmap(folder / "parents", np.int64, "w+", shape=(max(len(hashes), 1),))
    parent[:] = np.arange(len(parent))
    for bits in _bands(distance):
        for partition in _partitions(hashes, bits):
            for one, other in _close(hashes, partition, bits, distance):
                _union(parent, one, other)
    members = np.flatnonzero(parent != np.arange(len(parent)))
    roots = np.array([_find(parent, int(index)) for index in members])
    order = np.argsort(roots, kind="stable")
    for of_group in np.split(order, np.flatnonzero(np.diff(roots[order])) + 1) if len(members) else []:
        yield np.append(roots[of_group[0]], members[of_group])


def _bands(distance: int) -> list[np.uint64]:
    """Masks of two bands each, of distance + 2 bands of the 64 bits."""
    edges = np.linspace(0, 64, distance + 3).round().astype(int)
    masks = [sum(1 << bit for bit in range(low, high)) for low, high in pairwise(edges.tolist())]
    return [np.uint64(one | other) for one, other in combinations(masks, 2)]


def _partitions(hashes: np.ndarray, bits: np.uint64) -> Iterator[np.ndarray]:
    """Yield indices in partitions of about PARTITION; hashes that agree on the bits are in the same partition."""
    number = len(hashes) // PARTITION + 1
    for partition in range(number):
        blocks = range(0, len(hashes), PARTITION)
        of = [
            start + np.flatnonzero(_splitmix(hashes[start : start + PARTITION] & bits) % number == partition)
            for start in blocks
        ]
        yield np.concatenate(of) if of else np.zeros(0, np.int64)


def _splitmix(values: np.ndarray) -> np.ndarray:
    """Hashes uint64 values (the finaliser of splitmix64)."""
    mixed: np.ndarray = (values ^ (values >> np.uint64(31))) * np.uint64(0x7FB5D329728EA185)
    mixed ^= mixed >> np.uint64(27)
    return mixed


def _close(hashes: np.ndarray, partition: np.ndarray, bits: np.uint64, distance: int) -> Iterator[tuple[int, int]]:
    """Pairs of indices of a partition whose hashes agree on the bits and differ in at most `distance` of all."""
    of_partition = np.asarray(hashes[partition])
    keys = of_partition & bits
    order = np.lexsort((of_partition, keys))
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for bucket in np.split(order, edges) if len(edges) < len(order) - 1 else []:
        values, firsts, counts = np.unique(of_partition[bucket], return_index=True, return_counts=True)
        for start, count in zip(firsts[counts > 1], counts[counts > 1]):  # equal hashes stand side by side
            equal = partition[bucket[start : start + count]]
            yield from ((int(equal[0]), int(other)) for other in equal[1:])
        for index, value in enumerate(values[:-1] if distance else ()):
            rest = values[index + 1 :]
            near = index + 1 + np.flatnonzero(np.bitwise_count(rest ^ value) <= distance)
            yield from ((int(partition[bucket[firsts[index]]]), int(partition[bucket[firsts[n]]])) for n in near)


def _union(parent: np.ndarray, one: int, other: int) -> None:
    low, high = sorted((_find(parent, one), _find(parent, other)))
    parent[high] = low


def _find(parent: np.ndarray, index: int) -> int:
    """Return the first member of an index's group (union-find, with path halving)."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return int(index)
