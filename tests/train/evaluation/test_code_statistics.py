"""Codebook usage and the histogram baseline, against figures worked by hand."""

import numpy as np
import pytest

from train.evaluation import codes
from train.evaluation.context import context_baseline


def test_usage_and_entropy_per_depth():
    batch = np.array([[0, 3], [1, 3], [2, 3], [3, 3]], np.uint16).reshape(1, 2, 2, 2)
    first, second = codes.codebook_usage(codes.count_codes([batch, batch], 8))
    assert (first.rows_used, first.share_used) == (4, 0.5)
    assert first.entropy_bits == pytest.approx(2.0) and first.perplexity == pytest.approx(4.0)
    assert (second.rows_used, second.entropy_bits, second.perplexity) == (1, 0.0, 1.0)


def test_histograms_of_workers_add_up():
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 16, (1, 4, 4, 3)).astype(np.uint16) for _ in range(6)]
    whole = codes.count_codes(iter(batches), 16)
    assert (whole == codes.count_codes(batches[:2], 16) + codes.count_codes(batches[2:], 16)).all()
    assert whole.shape == (3, 16) and whole.sum() == 6 * 16 * 3


def test_baseline_is_the_cross_entropy_of_smoothed_train_frequencies():
    train, val = np.array([[3, 0]]), np.array([[1, 1]])
    result = codes.histogram_baseline(train, val)
    assert result.bits_per_code == pytest.approx(-(np.log2(4 / 5) + np.log2(1 / 5)) / 2)
    assert result.val_entropy_bits == pytest.approx(1.0)
    assert codes.entropy_bits(codes.count_codes([np.array([[0], [1]])], 2)).tolist() == [1.0]


def test_context_baseline_equals_its_definition_by_brute_force():
    rng = np.random.default_rng(0)
    train, val = (rng.integers(0, 3, (n, 3, 4, 2)).astype(np.uint16) for n in (6, 2))

    def contexts(grid, y, x, depth):
        left = tuple(grid[y, x - 1]) if x else None
        upper = tuple(grid[y - 1, x]) if y else None
        earlier = tuple(grid[y, x, :depth])
        return [(), (earlier,), (earlier, left), (earlier, left, upper)]

    def seen(depth, level):
        places = [(g, y, x) for g in train for y in range(3) for x in range(4)]
        return [(contexts(g, y, x, depth)[level], g[y, x, depth]) for g, y, x in places]

    bits = []
    for depth in range(2):
        for grid, y, x in [(g, y, x) for g in val for y in range(3) for x in range(4)]:
            p = 1 / 3
            for level, context in enumerate(contexts(grid, y, x, depth)):
                followers = [code for other, code in seen(depth, level) if other == context]
                if followers:
                    types = len(set(followers))
                    p = (followers.count(grid[y, x, depth]) + types * p) / (len(followers) + types)
            bits.append(-np.log2(p))
    result = context_baseline(iter(train[:, None]), iter(val[:, None]), 3)
    assert result.bits_per_code == pytest.approx(np.mean(bits))
    assert (result.num_train_codes, result.num_val_codes) == (6 * 24, 2 * 24)


def test_a_neighbour_that_tells_all_leaves_nothing_and_an_unseen_one_takes_nothing_away():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 64, (200, 8, 1, 1)).repeat(8, 2).astype(np.uint16)  # each row repeats its first code
    bits = context_baseline([rows[:180]], [rows[180:]], 64).bits_per_code
    assert 6 / 8 < bits < 6 / 8 + 0.3
    noise = rng.integers(0, 64, (60, 8, 8, 1)).astype(np.uint16)
    assert 6 <= context_baseline([noise[:50]], [noise[50:]], 64).bits_per_code < 7


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "empty"), ([np.array([[9]])], "codebook of 8"), ([np.zeros((1, 2)), np.zeros((1, 3))], "depths")],
)
def test_wrong_codes_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        codes.count_codes(batches, 8)
