"""PNG files hold the picture to the bit, whoever reads them, and grey ones take one channel."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.png import encode_png, from_plane, grey_plane


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64), (3, 1000)])
def test_colour_and_grey_come_back_to_the_bit(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert (decoded(encode_png(colour)) == colour).all()
    grey = from_plane(colour[..., 0].copy())
    assert (decoded(encode_png(grey)) == grey).all()
    assert encode_png(grey) == encode_png(np.array(grey)), "a view and its copy give the same bytes"
    assert Image.open(io.BytesIO(encode_png(grey))).mode == "L"


def test_one_coloured_pixel_keeps_a_picture_in_colour() -> None:
    for place in ((0, 0), (3, 7), (15, 15)):
        for channel in range(3):
            image = np.full((16, 16, 3), 200, np.uint8)
            assert grey_plane(image) is not None
            image[*place, channel] = 201
            assert grey_plane(image) is None
            assert (decoded(encode_png(image)) == image).all()


def test_a_part_of_a_page_is_seen_as_it_is() -> None:
    page = np.full((40, 40, 3), 255, np.uint8)
    page[5, 5] = (255, 0, 0)
    assert grey_plane(page[:20, :20]) is None
    plane = grey_plane(page[10:30, 10:30])
    assert plane is not None and (plane == 255).all() and plane.flags.c_contiguous
