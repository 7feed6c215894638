"""How close a reconstructed picture is to its original: PSNR and SSIM over uint8 pixels."""

from collections.abc import Iterable

import numpy as np
from scipy.ndimage import correlate1d

from data_specs.records import Quality

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
LUMA = np.array([0.299, 0.587, 0.114])


def mean_squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the mean squared difference of two uint8 arrays of one shape, in squared grey levels (0 ... 65,025)."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return float(np.mean(np.square(difference), dtype=np.float64))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the structural similarity of two uint8 pictures [H, W, 3] or [H, W], 1 where they are equal.

    After Wang et al. 2004: luminance, Gaussian window of 11 pixels with sigma 1.5, mean over the windows that lie
    wholly inside the picture.

    Raises:
        ValueError: pictures narrower than the window.
    """
    if min(a.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {SSIM_WINDOW} pixels a side, got {a.shape}")
    x, y = _luminance(a), _luminance(b)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float(np.mean((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure))


def reconstruction_quality(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Quality:
    """Measure the PSNR and SSIM over (original, reconstruction) pairs of uint8 [H, W, 3], streaming.

    `psnr` is the mean of the pictures' PSNRs in dB, as papers report it, without the exactly equal ones, which
    `num_identical` counts; `psnr_of_mean_error` is the PSNR of the error averaged over all pictures.

    Raises:
        ValueError: there is no pair.
    """
    errors = []
    similarities = []
    for original, reconstruction in pairs:
        _check_pair(original, reconstruction)
        errors.append(mean_squared_error(original, reconstruction))
        similarities.append(ssim(original, reconstruction))
    if not errors:
        raise ValueError("no pictures to compare: the set of originals or of reconstructions is empty")
    differing = np.array([e for e in errors if e > 0])
    return Quality(
        num_images=len(errors),
        num_identical=len(errors) - len(differing),
        psnr=float(np.mean(10 * np.log10(255.0**2 / differing))) if len(differing) else None,
        psnr_of_mean_error=float(10 * np.log10(255.0**2 / np.mean(errors))) if len(differing) else None,
        ssim=float(np.mean(similarities)),
    )


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"pictures must be uint8, got {a.dtype} and {b.dtype}")
    if a.shape != b.shape:
        raise ValueError(f"pictures differ in shape: {a.shape} and {b.shape}")


def _luminance(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) @ LUMA if image.ndim == 3 else image.astype(np.float64)


def _blur(x: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of every window inside x [H, W] -> [H - 10, W - 10]."""
    half = SSIM_WINDOW // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    return correlate1d(correlate1d(x, taps, axis=0), taps, axis=1)[half:-half, half:-half]
