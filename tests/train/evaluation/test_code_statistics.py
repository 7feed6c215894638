"""Codebook usage and the histogram baseline, against figures worked by hand."""

import numpy as np
import pytest

from train.evaluation import codes


def test_usage_and_entropy_per_depth():
    batch = np.array([[0, 3], [1, 3], [2, 3], [3, 3]], np.uint16).reshape(1, 2, 2, 2)
    first, second = codes.codebook_usage(codes.count_codes([batch, batch], 8))
    assert (first["rows_used"], first["share_used"]) == (4, 0.5)
    assert first["entropy_bits"] == pytest.approx(2.0) and first["perplexity"] == pytest.approx(4.0)
    assert (second["rows_used"], second["entropy_bits"], second["perplexity"]) == (1, 0.0, 1.0)


def test_histograms_of_workers_add_up():
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 16, (1, 4, 4, 3)).astype(np.uint16) for _ in range(6)]
    whole = codes.count_codes(iter(batches), 16)
    assert (whole == codes.count_codes(batches[:2], 16) + codes.count_codes(batches[2:], 16)).all()
    assert whole.shape == (3, 16) and whole.sum() == 6 * 16 * 3


def test_baseline_is_the_cross_entropy_of_smoothed_train_frequencies():
    train, val = np.array([[3, 0]]), np.array([[1, 1]])
    result = codes.histogram_baseline(train, val)
    assert result["bits_per_code"] == pytest.approx(-(np.log2(4 / 5) + np.log2(1 / 5)) / 2)
    assert result["val_entropy_bits"] == pytest.approx(1.0)
    assert codes.histogram_entropy([np.array([[0], [1]])], 2).tolist() == [1.0]


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "empty"), ([np.array([[9]])], "codebook of 8"), ([np.zeros((1, 2)), np.zeros((1, 3))], "depths")],
)
def test_wrong_codes_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        codes.count_codes(batches, 8)
