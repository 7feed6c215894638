"""Images with classes: limits before decoding, then the ADM centre crop, or the whole image, at the stored size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_specs.records import Reason
from data_specs.sections import Limits
from data_specs.text import one_line
from pipeline.renderers import Picture, UnreadableError

PREFIX_BYTES = 16  # by which Pillow tells formats
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")  # grey; of these the upper byte is kept


def render_image(data: bytes, size: int, limits: Limits, whole: bool = False) -> Iterator[Picture]:
    """Yield one picture of an encoded image: [size, size, 3], or whole, its shorter side `size`.

    Raises:
        UnreadableError: its format is not allowed, it is too large, eight bits cannot hold its pixels, or it is broken.
    """
    try:
        image = open_image(data, limits.image_formats, limits.pixels)
        if max(image.size) * size**2 > min(image.size) * limits.pixels:
            enlarged = f"{image.width}x{image.height} pixels: enlarged to {size}, over the limit of {limits.pixels}"
            raise UnreadableError(Reason.TOO_LARGE, enlarged)
        yield Picture("", whole_image(image, size) if whole else center_crop(image, size), {"box": (0, 0, *image.size)})
    except UnreadableError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(Reason.NOT_AN_IMAGE, one_line(error, 160)) from None


def open_image(data: bytes, formats: Sequence[str], max_pixels: int) -> Image.Image:
    """Open an encoded image that may be decoded; nothing is decoded yet.

    Args:
        data: the file.
        formats: Pillow's names of the formats that may be opened, whatever the file is called.
        max_pixels: of a larger image nothing is decoded.

    Raises:
        UnreadableError: see `render_image`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=list(formats))
    except UnidentifiedImageError:
        if other := _format_of(data[:PREFIX_BYTES]):
            raise UnreadableError(Reason.FORMAT_NOT_ALLOWED, other) from None
        raise UnreadableError(Reason.NOT_AN_IMAGE, f"begins with {data[:8]!r}" if data else "empty") from None
    if image.width * image.height > max_pixels:
        raise UnreadableError(Reason.TOO_LARGE, f"{image.width}x{image.height} pixels, over the limit of {max_pixels}")
    if image.mode not in (*MODES, *SIXTEEN_BITS):
        raise UnreadableError(Reason.MODE_NOT_ALLOWED, f"{image.format} of mode {image.mode}")
    return image


def _format_of(prefix: bytes) -> str:
    """Return the format that a file's first bytes show, by Pillow's own tests, which do not open it; "" for none."""
    if len(prefix) < PREFIX_BYTES:
        return ""
    Image.init()
    known = (name for name, (_, accepts) in sorted(Image.OPEN.items()) if accepts and accepts(prefix) is True)
    return next(known, "")


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Make the ADM centre crop uint8 [size, size, 3].

    It halves with a box filter while possible, then resizes bicubically, then cuts the middle.

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


def whole_image(image: Image.Image, size: int) -> np.ndarray:
    """Reduce the image to uint8 [H, W, 3] with shorter side `size`: torchvision's Resize, as the authors did."""
    image = _rgb(image)
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).copy()


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits RGB; of 16-bit grey the upper byte, where Pillow's own conversion makes nearly everything white."""
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
