"""The views of a stored image: those that are encoded, equal to the pixel to torchvision's TenCrop; one in training.

Arrays are uint8 [side, side, 3]; S is the stored side, `size` the side of a view.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

ViewKind = Literal["one", "centre", "ten_crop"]
NUM_VIEWS: dict[ViewKind, int] = {"one": 1, "centre": 1, "ten_crop": 10}

Pixels = NDArray[np.uint8]


def make_views(stored: Pixels, size: int, kind: ViewKind) -> Pixels:
    """Return the views [NUM_VIEWS[kind], size, size, 3] of a stored image; ValueError where it is too small."""
    if kind == "ten_crop":
        return ten_views(stored, size)
    if kind == "one" and stored.shape[:2] != (size, size):
        height, width = stored.shape[:2]
        raise ValueError(f"the image is {width}x{height} pixels, its one view must be {size}x{size}")
    return center_view(stored, size)[None]


def center_view(stored: Pixels, size: int) -> Pixels:
    """Return the middle [size, size, 3] of a stored image."""
    _check_size(stored, size)
    top, left = (round((side - size) / 2) for side in stored.shape[:2])
    return _cut(stored, top, left, size)


def random_view(stored: Pixels, size: int, at: tuple[float, float, float]) -> Pixels:
    """Return a view [size, size, 3] for training, cut at two shares of the room, mirrored where at[2] is below 0.5.

    An image of that size is taken as it is: only images for ten crops are stored larger, text never is.
    """
    _check_size(stored, size)
    if stored.shape[:2] == (size, size):
        return stored
    top, left = (int(share * (side - size + 1)) for share, side in zip(at[:2], stored.shape[:2], strict=True))
    view = _cut(stored, top, left, size)
    return view[:, ::-1] if at[2] < 0.5 else view


def five_views(stored: Pixels, size: int) -> Pixels:
    """Return [5, size, size, 3]: top-left, top-right, bottom-left, bottom-right, centre."""
    _check_size(stored, size)
    bottom, right = stored.shape[0] - size, stored.shape[1] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return np.stack([*(_cut(stored, top, left, size) for top, left in corners), center_view(stored, size)])


def ten_views(stored: Pixels, size: int) -> Pixels:
    """Return [10, size, size, 3]: the five views, then the same five of the mirror image."""
    return np.concatenate([five_views(stored, size), five_views(stored[:, ::-1], size)])


def _check_size(stored: Pixels, size: int) -> None:
    height, width = stored.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"the image is {width}x{height} pixels: no view of {size}x{size} fits")


def _cut(pixels: Pixels, top: int, left: int, size: int) -> Pixels:
    return pixels[top : top + size, left : left + size]
