"""The order of the data: permutations without a table, random numbers by position, mixtures without gaps."""

from __future__ import annotations

import numpy as np
import pytest

from train.loader import positions_of
from train.order import choose_sets, draw_uniform, positions_to_samples


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
