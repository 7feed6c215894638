"""PSNR and SSIM against scikit-image's published definitions, worked by hand."""

import numpy as np
import pytest

from train.evaluation import images


def test_psnr_of_a_constant_error_is_the_closed_form():
    a = np.full((16, 16, 3), 100, np.uint8)
    assert images.reconstruction_quality([(a, a + np.uint8(5))]).psnr == pytest.approx(20 * np.log10(255 / 5))
    assert images.reconstruction_quality([(a, a)]).psnr is None


def test_psnr_does_not_wrap_around_in_uint8():
    black, white = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 255, np.uint8)
    assert images.reconstruction_quality([(black, white)]).psnr == pytest.approx(0.0)


def test_ssim_equals_a_window_by_window_evaluation():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 14, 13), dtype=np.uint8)
    grid = np.arange(-5, 6)
    weights = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    expected = []
    for y in range(4):
        for x in range(3):
            p, q = a[y : y + 11, x : x + 11].astype(float), b[y : y + 11, x : x + 11].astype(float)
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            light = (2 * mp * mq + 2.55**2) / (mp**2 + mq**2 + 2.55**2)
            expected.append(light * (2 * cov + 7.65**2) / (vp + vq + 7.65**2))
    assert images.ssim(a, b) == pytest.approx(np.mean(expected), rel=1e-9)
    assert images.ssim(a, a) == pytest.approx(1.0)


def test_set_quality_counts_identical_pictures_apart_and_streams():
    a = np.full((16, 16, 3), 100, np.uint8)
    result = images.reconstruction_quality(pair for pair in [(a, a), (a, a + np.uint8(5))])
    assert result.num_images == 2 and result.num_identical == 1
    assert result.psnr == pytest.approx(20 * np.log10(255 / 5))
    assert result.psnr_of_mean_error == pytest.approx(10 * np.log10(255**2 / 12.5))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((16, 16, 3)), np.zeros((16, 16, 3)), "uint8"),
        (np.zeros((16, 16, 3), np.uint8), np.zeros((16, 12, 3), np.uint8), "shape"),
    ],
)
def test_wrong_pictures_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        images.reconstruction_quality([(a, b)])


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        images.reconstruction_quality([])
