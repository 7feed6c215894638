"""Batches of codes straight from memory-mapped shards: `Loader.batch(first, count)` is a pure function of position.

Shape letters: b samples of a batch, L grid positions (raster order), D codes at a position.
"""

from __future__ import annotations

import hashlib
import io
import resource
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data_specs import open_shards, storage
from data_specs.shards import Digests, Shard, index_uri
from data_specs.spec import ShardInput, Spec
from train import order

FETCHES = 8  # shards that a process fetches and verifies at a time
LOOK_AHEAD = 32  # samples a shard, in the order of the run, that say which shards are needed first
BLOCK = 8192  # positions whose order is worked out at once: for a batch alone NumPy's calls cost more than its sums
Batch = tuple[np.ndarray, np.ndarray]  # codes int64 [b, L, D], classes int64 [b]


class CodeShard:
    """One shard, memory-mapped: codes of any samples at once, and all classes.

    Raises ValueError, naming the shard, for codes of another shape.
    """

    def __init__(self, uri: str, digests: Digests, shape: tuple[int, int, int]) -> None:
        self.uri, self.shape = uri, shape
        self.shard = shard = Shard(uri, digests)
        rows, content = shard.field_rows("codes.npy"), np.frombuffer(shard.map, np.uint8)
        header, self.views = self._header(shard.map[int(rows["offset"][0]) :][:4096])
        self.view_bytes = 2 * int(np.prod(shape))
        if (rows["size"] != header + self.views * self.view_bytes).any():
            raise ValueError(f"{uri}: samples have different numbers of codes; make the set again")
        heads = sliding_window_view(content, header)[rows["offset"]]
        if (heads != heads[0]).any():
            raise ValueError(f"{uri}: samples have codes of different shapes; make the set again")
        self.starts = rows["offset"].astype(np.int64) + header
        self.windows = sliding_window_view(content, self.view_bytes)  # the codes of a view that begin at each byte
        classes = shard.field_rows("cls")
        self.classes = np.array([int(shard.map[o : o + n]) for o, n in classes[["offset", "size"]].tolist()], np.int64)

    def _header(self, data: bytes) -> tuple[int, int]:
        """(bytes of the .npy header, views a sample); checks type and shape."""
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype != np.dtype("<u2") or fortran or len(shape) != 4 or shape[1:] != self.shape:
            raise ValueError(
                f"{self.uri}: codes are {dtype} {list(shape)}, the spec says uint16 [views, *{list(self.shape)}]"
            )
        return file.tell(), shape[0]

    def codes(self, numbers: np.ndarray, view_draws: np.ndarray) -> np.ndarray:
        """Codes uint16 [n, L, D] of samples int64 [n], each of the view that its draw in [0, 1) picks."""
        views = (view_draws * self.views).astype(np.int64)
        raw = self.windows[self.starts[numbers] + views * self.view_bytes]
        return raw.view("<u2").reshape(len(numbers), -1, self.shape[2])


def verify_shard(uri: str, sha256: str) -> None:
    """Fetches a shard and its index to this node and raises ValueError where its bytes are not the manifest's."""
    with storage.local_copy(uri).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    storage.local_copy(index_uri(uri))
    if found != sha256:
        raise ValueError(f"{uri}: its bytes are not those of the manifest (sha256 {found[:12]}…); run `dnd verify`")


class CodeSet:
    """One shard set of a mixture: `read` gathers samples by index over its shards."""

    def __init__(self, uri: str, class_offset: int, shape: tuple[int, int, int]) -> None:
        self.set, self.class_offset, self.shape = open_shards(uri), class_offset, shape
        self.ends = np.array(self.set.ends, np.int64)
        self.opened: dict[int, CodeShard] = {}
        self.fetches: dict[int, Future[None]] = {}  # shards under way or here, not opened yet
        if not len(self.set):
            raise ValueError(f"{uri}: the set has no samples; look at its rejects with `dnd status`")

    def __len__(self) -> int:
        return len(self.set)

    def read(self, samples: np.ndarray, view_draws: np.ndarray) -> Batch:
        """Codes uint16 and classes of samples int64 [b]; view_draws float64 [b] in [0, 1) pick the views."""
        rows, columns, depth = self.shape
        codes = np.empty((len(samples), rows * columns, depth), np.uint16)
        classes = np.empty(len(samples), np.int64)
        shard_of = self.shards_of(samples)
        for number in np.unique(shard_of):
            here, shard = np.flatnonzero(shard_of == number), self._shard(int(number))
            inside = samples[here] - (self.ends[number - 1] if number else 0)
            codes[here] = shard.codes(inside, view_draws[here])
            classes[here] = shard.classes[inside]
        return codes, classes + self.class_offset

    def shards_of(self, samples: np.ndarray) -> np.ndarray:
        """The number of the shard that holds each sample int64 [n], int64 [n]."""
        return np.searchsorted(self.ends, samples, side="right")

    def _shard(self, number: int) -> CodeShard:
        if fetch := self.fetches.pop(number, None):
            fetch.result()
        if number not in self.opened:
            entry = self.set.manifest.shardlist[number]
            shard = CodeShard(self.set.shard_uris[number], entry, self.shape)
            if len(shard.starts) != entry.nsamples:
                raise ValueError(f"{shard.uri}: {len(shard.starts)} samples, the manifest says {entry.nsamples}")
            self.opened[number] = shard
        return self.opened[number]

    def fetch(self, number: int, pool: ThreadPoolExecutor) -> None:
        """Has a shard fetched and verified in the background; reading it waits for that and raises what it found."""
        if number not in self.fetches:
            entry = self.set.manifest.shardlist[number]
            self.fetches[number] = pool.submit(verify_shard, self.set.shard_uris[number], entry.sha256)

    def name(self, sample: int) -> str:
        """Shard and key of a sample, for messages."""
        number, inside = self.set.locate(sample)
        shard = self._shard(number)
        return f"{shard.uri}: sample {shard.shard.key(inside)}"


class Order(NamedTuple):
    """What is read at some positions: set and sample of it int64 [n], draws in [0, 1) of view and class dropout."""

    chosen: np.ndarray
    samples: np.ndarray
    views: np.ndarray
    dropout: np.ndarray


class Loader:
    """Batches of a mixture of code sets. Every sample of a set is read once an epoch, on any number of ranks."""

    def __init__(self, sets: Sequence[ShardInput], root: str, spec: Spec) -> None:
        _allow_open_files()
        shape = (*spec.shape.grid, spec.shape.depth)
        self.seed, self.weights = spec.seed, [entry.weight for entry in sets]
        self.sets = [CodeSet(storage.join(root, s.manifest), s.class_offset, shape) for s in sets]
        self.codebook_size, self.num_classes = spec.shape.codebook_size, spec.transformer.num_classes
        self.class_dropout = spec.transformer.class_dropout
        self.pool = ThreadPoolExecutor(FETCHES)
        self.block = lru_cache(2)(self._block)

    def __len__(self) -> int:
        return sum(len(entry) for entry in self.sets)

    def fetch_from(self, position: int) -> None:
        """Begins to fetch all shards to this node, in the order in which they are used from `position` on.

        Each is checked against the manifest's digest; a ValueError that names a bad one comes when it is read. The
        ranks of a node share the files, and the first batches need not wait for the last shards.
        """
        shards = sum(len(entry.ends) for entry in self.sets)
        chosen, samples, *_ = self.read_order(position, LOOK_AHEAD * shards)
        numbers = np.empty_like(samples)
        for number, entry in enumerate(self.sets):
            numbers[chosen == number] = entry.shards_of(samples[chosen == number])
        every = [(number, shard) for number, entry in enumerate(self.sets) for shard in range(len(entry.ends))]
        for number, shard in dict.fromkeys([*zip(chosen.tolist(), numbers.tolist()), *every]):
            self.sets[number].fetch(shard, self.pool)

    def close(self) -> None:
        """Leaves out what is not fetched yet; else the interpreter would wait for it at its end."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def read_order(self, first: int, count: int) -> Order:
        """What is read at positions first … first + count - 1 of the run."""
        start, stop = first // BLOCK, (first + count - 1) // BLOCK + 1
        blocks = [self.block(number) for number in range(start, stop)]
        inside = slice(first - start * BLOCK, first - start * BLOCK + count)
        return Order(*(np.concatenate(parts)[inside] for parts in zip(*blocks)))

    def _block(self, number: int) -> Order:
        positions = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64)
        chosen, places = order.choose_sets(positions, self.weights)
        samples = np.empty(BLOCK, np.int64)
        for which, entry in enumerate(self.sets):
            mine = chosen == which
            samples[mine] = order.positions_to_samples(self.seed + which, places[mine], len(entry))
        draws = (order.draw_uniform(self.seed, positions, stream) for stream in (order.VIEW, order.CLASS_DROPOUT))
        return Order(chosen, samples, *draws)

    def batch(self, first: int, count: int) -> Batch:
        """Codes int64 [count, L, D] and classes int64 [count] at positions first … first + count - 1 of the run.

        Class num_classes stands for a class that was dropped. Raises ValueError for damaged or unfitting shards.
        """
        chosen, samples, views, dropout = self.read_order(first, count)
        rows, columns, depth = self.sets[0].shape
        codes, classes = np.empty((count, rows * columns, depth), np.int64), np.empty(count, np.int64)
        for number in np.unique(chosen):
            mine = np.flatnonzero(chosen == number)
            codes[mine], classes[mine] = self._read(number, samples[mine], views[mine])
        return codes, np.where(dropout < self.class_dropout, self.num_classes, classes)

    def in_order(self, first: int, count: int) -> Batch:
        """First views of samples first … first + count - 1 of the first set, from its start again at its end."""
        places = np.arange(first, first + count, dtype=np.int64) % len(self.sets[0])
        codes, classes = self._read(0, places, np.zeros(count))
        return codes.astype(np.int64), classes

    def _read(self, number: int, samples: np.ndarray, views: np.ndarray) -> Batch:
        """Reads samples of a set, codes uint16.

        Raises ValueError naming shard and key of one with codes or a class out of range.
        """
        entry = self.sets[number]
        codes, classes = entry.read(samples, views)
        if codes.max() >= self.codebook_size:
            worst = int(codes.reshape(len(codes), -1).max(1).argmax())
            raise ValueError(
                f"{entry.name(int(samples[worst]))} has code {codes.max()}, but shape.codebook_size is "
                f"{self.codebook_size}: use the codes of the tokenizer that the spec describes"
            )
        if not 0 <= classes.min() <= classes.max() < self.num_classes:
            worst = int(classes.argmax() if classes.min() >= 0 else classes.argmin())
            raise ValueError(
                f"{entry.name(int(samples[worst]))} has class {classes[worst]} (class_offset included), but "
                f"transformer.num_classes is {self.num_classes}: raise it, or change train.codes"
            )
        return codes, classes

    def ahead(self, wanted: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """`batch(*w)` for each w of `wanted`, read in a thread one batch ahead."""
        with ThreadPoolExecutor(1) as pool:
            waiting: list[Any] = []
            for first, count in wanted:
                waiting.append(pool.submit(self.batch, first, count))
                if len(waiting) > 1:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()


def positions_of(position: int, batch: int, micro: int, rank: int, world: int) -> list[tuple[int, int]]:
    """(first, count) of a rank's micro batches in the step that begins at `position`.

    Over all ranks they cover the positions of the step, position … position + batch - 1, once.
    """
    return [(start + rank * micro, micro) for start in range(position, position + batch, micro * world)]


def _allow_open_files() -> None:
    """Every mapped shard holds a file open: raises the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
