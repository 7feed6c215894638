"""Images of every mode and shape become crops, or are rejected with a reason; nothing crashes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.renderers import Unreadable
from pipeline.renderers.images import render_image

PIXELS = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def crop(data: bytes, size: int = 64, max_pixels: int = 10**6) -> np.ndarray:
    (picture,) = render_image(data, size, max_pixels)
    assert picture.image.shape == (size, size, 3) and picture.image.dtype == np.uint8
    return picture.image


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    + [(mode, "JPEG") for mode in ("L", "CMYK", "YCbCr")]
    + [(mode, "TIFF") for mode in ("I", "F", "LAB", "CMYK")],
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    assert abs(float(crop(encoded(RGB.convert(mode), kind)).mean()) - PIXELS.mean()) < 3


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 64), (63, 200), (127, 128), (128, 129), (301, 77)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert (crop(encoded(Image.new("RGB", size, "red"))) == [255, 0, 0]).all()


def test_sixteen_bits_keep_their_greys() -> None:
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    assert np.array_equal(crop(encoded(Image.fromarray(grey)))[..., 0], grey >> 8)


def test_exif_orientation_is_left_aside_as_by_the_authors() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    assert np.array_equal(crop(encoded(RGB, "JPEG", exif=exif)), crop(encoded(RGB, "JPEG")))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (encoded(RGB)[:2000], "not an image"),
        (encoded(Image.new("L", (1001, 1000))), "1001x1000 pixels, over the limit"),
        (encoded(Image.new("L", (20_000, 1))), "20000x1 pixels: enlarged to 64, over the limit"),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        crop(data)
