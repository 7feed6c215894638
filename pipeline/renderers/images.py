"""Images with classes: limits before decoding, then the ADM centre crop at the size that is stored."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_specs.records import Reason
from pipeline.renderers import Picture, Unreadable


def render_image(data: bytes, size: int, max_pixels: int) -> Iterator[Picture]:
    """One picture [size, size, 3] of an encoded image; Unreadable where it is too large or broken."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise Unreadable(Reason.TOO_LARGE, f"{image.width}x{image.height} pixels, over the limit of {max_pixels}")
        if max(image.size) * size**2 > min(image.size) * max_pixels:
            enlarged = f"{image.width}x{image.height} pixels: enlarged to {size}, over the limit of {max_pixels}"
            raise Unreadable(Reason.TOO_LARGE, enlarged)
        yield Picture("", center_crop(image, size), {"box": (0, 0, *image.size)})
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(Reason.NOT_AN_IMAGE, str(error)) from None


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM centre crop uint8 [size, size, 3]: halve with a box filter while possible, then bicubic, then cut the middle.

    Equal to the pixel to `center_crop_arr` of guided-diffusion, which leaves EXIF orientation and transparency aside.
    """
    image = _rgb(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = round(image.width * scale), round(image.height * scale)
    pixels = np.asarray(image.resize(shape, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size].copy()


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits RGB; of 16-bit grey the upper byte, where Pillow's own conversion makes nearly everything white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
