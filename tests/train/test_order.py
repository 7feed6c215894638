"""The order of the data: permutations without a table, random numbers by position, mixtures without gaps."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest

from train.loader import CACHE_SHARE, CodeSet, positions_of
from train.order import Windows, choose_sets, draw_uniform, positions_to_samples


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 64, 1000, 4097])
def test_every_epoch_reads_every_sample_once(num_samples: int) -> None:
    epochs = positions_to_samples(3, np.arange(3 * num_samples), num_samples).reshape(3, num_samples)
    assert (np.sort(epochs, axis=1) == np.arange(num_samples)).all()


def test_epochs_and_seeds_differ_and_look_random() -> None:
    first, second = positions_to_samples(0, np.arange(20_000), 10_000).reshape(2, -1)
    other = positions_to_samples(1, np.arange(10_000), 10_000)
    for order in (first, second, other):
        assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
        assert (np.diff(order) == 1).mean() < 0.01
    assert (first == second).mean() < 0.01
    assert (first == other).mean() < 0.01


def test_a_batch_across_epochs_is_the_same_however_it_is_cut() -> None:
    whole = positions_to_samples(5, np.arange(90, 215), 100)
    assert (whole == np.concatenate([positions_to_samples(5, np.array([k]), 100) for k in range(90, 215)])).all()


def test_far_positions_stay_within_the_set() -> None:
    samples = positions_to_samples(5, np.arange(10**12, 10**12 + 1000), 1_281_167)
    assert samples.min() >= 0
    assert samples.max() < 1_281_167


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        positions_to_samples(0, np.arange(3), 0)


def test_uniform_numbers_are_uniform_and_streams_independent() -> None:
    a, b = (draw_uniform(1, np.arange(50_000), stream) for stream in (1, 2))
    assert abs(a.mean() - 0.5) < 0.01
    assert abs(a.var() - 1 / 12) < 0.005
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert a.min() >= 0
    assert a.max() < 1
    assert (a[100:200] == draw_uniform(1, np.arange(100, 200), 1)).all()


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0], [0.5, 0.2, 0.3]])
def test_mixtures_keep_their_shares_without_gap_or_repeat(weights: list[float]) -> None:
    chosen, places = choose_sets(np.arange(10_000), weights)
    for number, weight in enumerate(weights):
        mine = places[chosen == number]
        assert (mine == np.arange(len(mine))).all()
        assert abs(len(mine) / 10_000 - weight / sum(weights)) < 0.001
    later = choose_sets(np.arange(5_000, 5_100), weights)
    assert (later[0] == chosen[5_000:5_100]).all()
    assert (later[1] == places[5_000:5_100]).all()


@pytest.mark.parametrize(("micro", "world"), [(8, 1), (2, 1), (2, 2), (1, 4)])
def test_ranks_and_micro_batches_cover_each_step_once(micro: int, world: int) -> None:
    ranges = [w for rank in range(world) for w in positions_of(40, 8, micro, rank, world)]
    assert sorted(k for first, count in ranges for k in range(first, first + count)) == list(range(40, 48))


# ---- windows -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [1, 3, 4, 9, 10, 20, None])
def test_windows_read_every_sample_once_an_epoch_and_no_other_shard(window: int | None) -> None:
    sizes = np.array([5, 1, 7, 3, 3, 8, 2, 6, 4, 1])
    windows, ends = Windows(7, sizes, window), np.cumsum(sizes)
    samples, numbers = windows.samples(np.arange(120))
    assert (np.sort(samples.reshape(3, 40), axis=1) == np.arange(40)).all()
    assert (np.diff(numbers) >= 0).all() and numbers[-1] == 3 * windows.per_epoch - 1
    for number in np.unique(numbers).tolist():
        read = np.unique(np.searchsorted(ends, samples[numbers == number], side="right"))
        assert read.tolist() == sorted(windows.shards(number).tolist())
        assert len(read) <= (window or 10)
    cut = [Windows(7, sizes, window).samples(np.array([k]))[0][0] for k in range(120)]
    assert samples.tolist() == cut
    if window is None:
        assert samples.tolist() == positions_to_samples(7, np.arange(120), 40).tolist()


def test_windows_are_dealt_and_shuffled_anew_each_epoch() -> None:
    windows = Windows(1, np.full(50, 100), 10)
    first, second = windows.samples(np.arange(10_000))[0].reshape(2, -1)
    other = Windows(2, np.full(50, 100), 10).samples(np.arange(5_000))[0]
    assert (first == second).mean() < 0.01 and (first == other).mean() < 0.01
    assert set(windows.shards(0)) != set(windows.shards(5))
    assert abs(np.corrcoef(first[:1000], np.arange(1000))[0, 1]) < 0.1


def test_a_billion_samples_on_four_nodes_with_a_cache_of_a_tenth() -> None:
    """Two epochs of 100,000 shards, looked at 100 times each: no node keeps too much or fetches twice."""
    num_shards, size, room, done = 100_000, 10_000, 10_000, Future[list[BinaryIO]]()
    for node in range(4):
        fetched = list[int]()
        entry = CodeSet.__new__(CodeSet)  # a set whose shards are their numbers
        entry.ends, entry.entered = np.cumsum(np.full(num_shards, size)), range(0)
        entry.opened, entry.fetches = {}, {}
        entry.set = SimpleNamespace(shard_uris=range(num_shards), manifest=SimpleNamespace(shardlist=range(num_shards)))  # type: ignore[assignment]
        entry.shuffle(0, int(room * CACHE_SHARE) // 2)
        for position in range(0, 2 * num_shards * size, 10_000_000):
            samples, windows = entry.windows.samples(position + 256 * node + np.arange(256))
            entry.enter(int(windows[0]), int(windows[-1]), lambda uri, _, to=fetched: to.append(uri) or done)  # type: ignore[arg-type,misc]
            assert len(entry.fetches) <= room
            assert all(shard in entry.fetches for shard in entry.shards_of(samples).tolist())
        assert len(fetched) <= 1.1 * 2 * num_shards
