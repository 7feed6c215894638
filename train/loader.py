"""Batches of codes straight from memory-mapped shards: `Loader.batch(first, count)` is a pure function of position.

Shape letters: b samples of a batch, L grid positions (raster order), D codes at a position.
"""

from __future__ import annotations

import io
import logging
import resource
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache as cache_once
from functools import lru_cache, partial
from threading import Event
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data_specs import cache, open_shards, storage
from data_specs.ahead import in_threads
from data_specs.npy import read_header
from data_specs.reader import ShardSet
from data_specs.records import ReadingOrder, ShardEntry
from data_specs.sections import ShardInput
from data_specs.shards import Digests, Shard, index_uri, open_verified
from data_specs.spec import Spec
from train import order

FETCHES = 8  # shards that a process fetches and verifies at a time
LOOK_AHEAD = 32  # samples a shard, in the order of the run, that say which shards are needed first
BLOCK = 8192  # positions whose order is worked out at once: for a batch alone NumPy's calls cost more than its sums
CACHE_SHARE = 0.9  # of the cache that two windows may take: the rest is for validation and others
ROOM_SECONDS = 60.0  # seconds that a read waits for a shard which finds no room, before the cache's limit is exceeded
Batch = tuple[np.ndarray, np.ndarray]  # codes int64 [b, L, D], classes int64 [b]
log = logging.getLogger(__name__)


class CodeShard:
    """One shard, memory-mapped: codes of any samples at once, and all classes.

    Raises ValueError, naming the shard, for codes of another shape.
    """

    def __init__(self, shard: Shard, shape: tuple[int, int, int]) -> None:
        self.uri = shard.uri
        self.shape = shape
        rows = shard.field_rows("codes.npy")
        content = np.frombuffer(shard.map, np.uint8)
        header, self.views = self._header(shard.map[int(rows["offset"][0]) :][:4096])
        self.view_bytes = 2 * int(np.prod(shape))
        if (rows["size"] != header + self.views * self.view_bytes).any():
            raise ValueError(f"{self.uri}: samples have different numbers of codes; make the set again")
        heads = sliding_window_view(content, header)[rows["offset"]]
        if (heads != heads[0]).any():
            raise ValueError(f"{self.uri}: samples have codes of different shapes; make the set again")
        self.starts = rows["offset"].astype(np.int64) + header
        self.windows = sliding_window_view(content, self.view_bytes)  # the codes of a view that begin at each byte
        classes = shard.field_rows("cls")
        try:
            numbers = [int(shard.map[o : o + n]) for o, n in classes[["offset", "size"]].tolist()]
            self.classes = np.array(numbers, np.int32)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{self.uri}: a sample's cls is not the number of a class ({error})") from None

    def _header(self, data: bytes) -> tuple[int, int]:
        """Return (bytes of the .npy header, views a sample); checks type and shape."""
        file = io.BytesIO(data)
        shape, fortran, dtype = read_header(file)
        if dtype != np.dtype("<u2") or fortran or len(shape) != 4 or shape[1:] != self.shape:
            raise ValueError(
                f"{self.uri}: codes are {dtype} {list(shape)}, the spec says uint16 [views, *{list(self.shape)}]"
            )
        return file.tell(), shape[0]

    def codes(self, numbers: np.ndarray, view_draws: np.ndarray) -> np.ndarray:
        """Gather codes uint16 [n, L, D] of samples int64 [n], each of the view that its draw in [0, 1) picks."""
        views = (view_draws * self.views).astype(np.int64)
        raw = self.windows[self.starts[numbers] + views * self.view_bytes]
        return raw.view("<u2").reshape(len(numbers), -1, self.shape[2])


def fetch_shard(uri: str, digests: Digests, wait: Event) -> list[BinaryIO]:
    """Fetch the verified tar and index of a shard to this node; the files returned hold a remote one in the cache."""
    files = [open_verified(index_uri(uri), digests.index_sha256, wait), open_verified(uri, digests.sha256, wait)]
    if storage.is_remote(uri):
        return files
    for file in files:
        file.close()
    return []


class CodeSet:
    """One shard set of a mixture: `read` gathers samples by index over its shards."""

    def __init__(self, uri: str, class_offset: int, shape: tuple[int, int, int]) -> None:
        self.set = open_shards(uri)
        self.class_offset = class_offset
        self.shape = shape
        self.ends = np.array(self.set.ends, np.int64)
        self.opened: dict[int, CodeShard] = {}  # the least recently used first
        self.fetches: dict[int, Future[list[BinaryIO]]] = {}  # shards under way or here, not opened yet
        self.entered = range(0)
        self.most_open = most_open()
        if not len(self.set):
            raise ValueError(f"{uri}: the set has no samples; look at its rejects with `dnd status`")

    def shuffle(self, seed: int, window: int | None) -> None:
        """Decide the order in which the set is read."""
        self.windows = order.Windows(seed, np.diff(self.ends, prepend=0), window)

    def __len__(self) -> int:
        return len(self.set)

    def read(self, samples: np.ndarray, view_draws: np.ndarray) -> Batch:
        """Gather codes uint16 and classes of samples int64 [b]; view_draws float64 [b] in [0, 1) pick the views."""
        rows, columns, depth = self.shape
        codes = np.empty((len(samples), rows * columns, depth), np.uint16)
        classes = np.empty(len(samples), np.int64)
        shard_of = self.shards_of(samples)
        for number in np.unique(shard_of):
            here = np.flatnonzero(shard_of == number)
            shard = self._shard(int(number))
            inside = samples[here] - (self.ends[number - 1] if number else 0)
            codes[here] = shard.codes(inside, view_draws[here])
            classes[here] = shard.classes[inside]
        return codes, classes + self.class_offset

    def shards_of(self, samples: np.ndarray) -> np.ndarray:
        """Return the number of the shard that holds each sample int64 [n], int64 [n]."""
        return np.searchsorted(self.ends, samples, side="right")

    def _shard(self, number: int) -> CodeShard:
        shard = self.opened.pop(number, None) or self._open(number)
        self.opened[number] = shard
        while len(self.opened) > self.most_open:
            del self.opened[next(iter(self.opened))]
        return shard

    def _open(self, number: int) -> CodeShard:
        held = list[BinaryIO]()
        if fetch := self.fetches.pop(number, None):
            with suppress(TimeoutError):  # opened without waiting for room, then
                held = fetch.result(ROOM_SECONDS)
        shard = CodeShard(self.set.open(number), self.shape)
        for file in held:
            file.close()
        return shard

    def enter(self, first: int, last: int, fetch: Callable[[str, ShardEntry], Future[list[BinaryIO]]]) -> None:
        """Fetch the shards of windows first … last, then those of the next, in the background, and close all others.

        Reading a shard waits for its fetch and raises what that found.
        """
        wanted = range(first, last + 2)
        if wanted == self.entered:
            return
        self.entered = wanted
        kept = dict.fromkeys(shard for number in wanted for shard in self.windows.shards(number).tolist())
        for number in [number for number in self.fetches if number not in kept]:
            self.fetches.pop(number).cancel()
        for number in [number for number in self.opened if number not in kept]:
            del self.opened[number]
        self.fetch(kept, fetch)

    def fetch(self, shards: Iterable[int], fetch: Callable[[str, ShardEntry], Future[list[BinaryIO]]]) -> None:
        """Fetch shards in the background that are not yet here or under way."""
        for number in shards:
            if number not in self.fetches and number not in self.opened:
                self.fetches[number] = fetch(self.set.shard_uris[number], self.set.manifest.shardlist[number])

    def name(self, sample: int) -> str:
        """Return shard and key of a sample, for messages."""
        number, inside = self.set.locate(sample)
        return f"{self.set.shard_uris[number]}: sample {self.set.shard(number).key(inside)}"


class Order(NamedTuple):
    """What is read at some positions: set, sample and window of it int64 [n], draws in [0, 1) of view and dropout."""

    chosen: np.ndarray
    samples: np.ndarray
    windows: np.ndarray
    views: np.ndarray
    dropout: np.ndarray


class Loader:
    """Batches of a mixture of code sets. Every sample of a set is read once an epoch, on any number of ranks.

    Args:
        sets: what is mixed.
        root: what their addresses start from.
        spec: its shape, seed and transformer decide what is read, and refuse what does not fit.
        order_uri: where the first start keeps in windows of how many shards the run is shuffled (train.shuffle_window);
            None: all at once.
    """

    def __init__(self, sets: Sequence[ShardInput], root: str, spec: Spec, order_uri: str | None = None) -> None:
        shape = (*spec.codes.grid, spec.codes.depth)
        self.seed = spec.seed
        self.weights = [entry.weight for entry in sets]
        self.sets = [CodeSet(storage.join(root, s.manifest), s.class_offset, shape) for s in sets]
        shards = [entry.set for entry in self.sets]
        window = settle_window(order_uri, spec.train.shuffle_window, shards) if order_uri else None
        for number, entry in enumerate(self.sets):
            entry.shuffle(spec.seed + number, window)
        self.codebook_size = spec.codes.codebook_size
        self.num_classes = spec.transformer.num_classes
        self.class_dropout = spec.transformer.class_dropout
        self.pool = ThreadPoolExecutor(FETCHES)
        self.closed = Event()
        self.block = lru_cache(2)(self._block)

    def __len__(self) -> int:
        return sum(len(entry) for entry in self.sets)

    def fetch_from(self, position: int) -> None:
        """Begin to fetch shards to this node, in the order in which they are used from `position` on.

        Each is checked against the manifest's digests; a ValueError that names a bad one comes when it is read. The
        ranks of a node share the files, and the first batches need not wait for the last shards.
        """
        ahead = self.read_order(position, LOOK_AHEAD * sum(entry.windows.window for entry in self.sets))
        shards = np.empty_like(ahead.samples)
        near = np.zeros(len(ahead.samples), bool)
        now = dict[int, int]()
        for number in np.unique(ahead.chosen).tolist():
            mine = ahead.chosen == number
            shards[mine] = self.sets[number].shards_of(ahead.samples[mine])
            now[number] = int(ahead.windows[mine][0])
            near[mine] = ahead.windows[mine] <= now[number] + 1
        for number, shard in dict.fromkeys(zip(ahead.chosen[near].tolist(), shards[near].tolist())):
            self.sets[number].fetch([shard], self._fetch)
        for number, window in now.items():
            self.sets[number].enter(window, window, self._fetch)

    def _fetch(self, uri: str, entry: ShardEntry) -> Future[list[BinaryIO]]:
        return self.pool.submit(fetch_shard, uri, entry, self.closed)

    def close(self) -> None:
        """Leave out what is not fetched yet; else the interpreter would wait for it at its end."""
        self.closed.set()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def read_order(self, first: int, count: int) -> Order:
        """Return what is read at positions first … first + count - 1 of the run."""
        start, stop = first // BLOCK, (first + count - 1) // BLOCK + 1
        blocks = [self.block(number) for number in range(start, stop)]
        inside = slice(first - start * BLOCK, first - start * BLOCK + count)
        return Order(*(np.concatenate(parts)[inside] for parts in zip(*blocks)))

    def _block(self, number: int) -> Order:
        positions = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64)
        chosen, places = order.choose_sets(positions, self.weights)
        samples, windows = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
        for which, entry in enumerate(self.sets):
            mine = chosen == which
            samples[mine], windows[mine] = entry.windows.samples(places[mine])
        draws = (order.draw_uniform(self.seed, positions, stream) for stream in (order.VIEW, order.CLASS_DROPOUT))
        return Order(chosen, samples, windows, *draws)

    def batch(self, first: int, count: int) -> Batch:
        """Read codes int64 [count, L, D] and classes int64 [count] at positions first … first + count - 1 of the run.

        Class num_classes stands for a class that was dropped.

        Raises:
            ValueError: damaged or unfitting shards.
        """
        chosen, samples, windows, views, dropout = self.read_order(first, count)
        rows, columns, depth = self.sets[0].shape
        codes = np.empty((count, rows * columns, depth), np.int64)
        classes = np.empty(count, np.int64)
        for number in np.unique(chosen):
            mine = np.flatnonzero(chosen == number)
            self.sets[number].enter(int(windows[mine[0]]), int(windows[mine[-1]]), self._fetch)
            codes[mine], classes[mine] = self._read(number, samples[mine], views[mine])
        return codes, np.where(dropout < self.class_dropout, self.num_classes, classes)

    def in_order(self, first: int, count: int) -> Batch:
        """Read the first views of samples first … first + count - 1 of the first set, which begins anew at its end."""
        places = np.arange(first, first + count, dtype=np.int64) % len(self.sets[0])
        codes, classes = self._read(0, places, np.zeros(count))
        return codes.astype(np.int64), classes

    def _read(self, number: int, samples: np.ndarray, views: np.ndarray) -> Batch:
        """Read samples of a set, codes uint16.

        Raises:
            ValueError: names shard and key of one with codes or a class out of range.
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

    def ahead(self, wanted: Iterable[tuple[int, int]]) -> Generator[Batch, None, None]:
        """Yield `batch(*w)` for each w of `wanted`, read in a thread one batch ahead."""
        return in_threads((partial(self.batch, first, count) for first, count in wanted), threads=1, ahead=1)


def positions_of(position: int, images: int, micro: int, rank: int, world: int) -> Iterator[tuple[int, int]]:
    """Return (first, count) of a rank's micro batches in steps of so many images together, which begin at `position`.

    Over all ranks they cover the positions of the steps, position … position + images - 1, once.
    """
    return ((start + rank * micro, micro) for start in range(position, position + images, micro * world))


# ---- windows -------------------------------------------------------------------------------------------------------
def settle_window(uri: str, wanted: int | None, sets: Sequence[ShardSet]) -> int | None:
    """Return the shards of a window, as the run's first start wrote them to `uri`, so that all read in one order.

    Args:
        uri: the file; made if it is absent.
        wanted: what the spec says; None: as many as fit here, and None where all do.
        sets: the shard sets of the mixture.

    Raises:
        ValueError: the spec wants another than the run was begun with.
    """
    mine = ReadingOrder(shuffle_window=wanted or _fitting_window(sets))
    storage.create(uri, mine.to_json())
    settled = ReadingOrder.parse(storage.read_bytes(uri), uri).shuffle_window
    if wanted and settled != wanted:
        raise ValueError(
            f"train.shuffle_window is {wanted}, but {uri} says that this training reads in windows of "
            f"{settled or 'all'} shards: set it back, or train under another root"
        )
    if not _fits(sets, settled):
        log.warning("two windows of %s shards do not fit DND_CACHE_BYTES or the open files here", settled or "all")
    return settled


def _fitting_window(sets: Sequence[ShardSet]) -> int | None:
    """Return the most shards of which two windows fit; None where all sets do."""
    if _fits(sets, None):
        return None
    sizes = range(1, max(len(entry.shard_uris) for entry in sets) + 1)
    return max(bisect_left(sizes, True, key=lambda window: not _fits(sets, window)), 1)


def _fits(sets: Sequence[ShardSet], window: int | None) -> bool:
    """Return whether two windows of each set, or all of it, fit the cache and half of the files that may be open."""
    num_files = num_bytes = 0
    for entry in sets:
        sizes = sorted((shard.filesize for shard in entry.manifest.shardlist), reverse=True)
        here = sizes[: 2 * window if window and window < len(sizes) else None]
        num_files += len(here)
        num_bytes += sum(here) if storage.is_remote(entry.uri) else 0
    return num_files <= most_open() and (not num_bytes or num_bytes <= CACHE_SHARE * cache.limit_bytes())


@cache_once
def most_open() -> int:
    """Raise this process's limit of open files; return how many shards fit: a fetched one holds two, a mapped one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard // 4
