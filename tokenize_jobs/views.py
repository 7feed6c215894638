"""How a picture is cut: the ADM centre crop that is stored, and the views of a stored image that are encoded.

Equal to the pixel to the published preprocessing (`center_crop_arr` of guided-diffusion, torchvision's TenCrop).
Arrays are uint8 [side, side, 3]; S is the stored side, `size` the side of a view.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ViewKind = Literal["one", "centre", "ten_crop"]
NUM_VIEWS: dict[ViewKind, int] = {"one": 1, "centre": 1, "ten_crop": 10}
CROP_RANGE = 1.1

Pixels = NDArray[np.uint8]


def stored_size(size: int) -> int:
    """Side at which an image is stored from which ten crops of `size` are taken."""
    return int(size * CROP_RANGE)


def center_crop(image: Image.Image, size: int) -> Pixels:
    """ADM centre crop [size, size, 3]: halve with a box filter while possible, then bicubic, then cut the middle."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = round(image.width * scale), round(image.height * scale)
    pixels = np.asarray(image.resize(shape, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return _cut(pixels, top, left, size).copy()


def reduce_image(pixels: Pixels, size: int) -> Pixels:
    """A square image reduced to [size, size, 3] by Pillow's bicubic; itself where it has that size."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def make_views(stored: Pixels, size: int, kind: ViewKind) -> Pixels:
    """The views [NUM_VIEWS[kind], size, size, 3] of a stored image; ValueError where it is too small for them."""
    if kind == "ten_crop":
        return ten_views(stored, size)
    if kind == "one" and stored.shape[:2] != (size, size):
        height, width = stored.shape[:2]
        raise ValueError(f"the image is {width}x{height} pixels, its one view must be {size}x{size}")
    return center_view(stored, size)[None]


def center_view(stored: Pixels, size: int) -> Pixels:
    """The middle [size, size, 3] of a stored image."""
    _check_size(stored, size)
    top, left = (round((side - size) / 2) for side in stored.shape[:2])
    return _cut(stored, top, left, size)


def five_views(stored: Pixels, size: int) -> Pixels:
    """[5, size, size, 3]: top-left, top-right, bottom-left, bottom-right, centre."""
    _check_size(stored, size)
    bottom, right = stored.shape[0] - size, stored.shape[1] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return np.stack([*(_cut(stored, top, left, size) for top, left in corners), center_view(stored, size)])


def ten_views(stored: Pixels, size: int) -> Pixels:
    """[10, size, size, 3]: the five views, then the same five of the mirror image."""
    return np.concatenate([five_views(stored, size), five_views(stored[:, ::-1], size)])


def _check_size(stored: Pixels, size: int) -> None:
    height, width = stored.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"the image is {width}x{height} pixels: no view of {size}x{size} fits")


def _cut(pixels: Pixels, top: int, left: int, size: int) -> Pixels:
    return pixels[top : top + size, left : left + size]
