"""Crops equal the authors' preprocessing to the pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.renderers.images import center_crop
from tokenize_jobs.views import center_view, make_views, random_view, ten_views

PHOTOS = ["skimage-astronaut.png", "skimage-coffee.png", "skimage-camera.png", "lomiri-dragonfly.jpg"]


@pytest.mark.parametrize("name", PHOTOS)
def test_crops_equal_the_goldens(shared: Path, name: str) -> None:
    golden = np.load(shared / "reference" / "crops.npz")
    with Image.open(shared / "data" / "images" / "photos" / name) as image:
        np.testing.assert_array_equal(center_crop(image, 256), golden[f"center_256/{name}"])
        views = ten_views(center_crop(image, int(64 * 1.1)), 64)
    np.testing.assert_array_equal(views, golden[f"ten_64/{name}"])


def test_views_of_a_stored_image() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (281, 281, 3), dtype=np.uint8)
    ten = make_views(stored, 256, "ten_crop")
    np.testing.assert_array_equal(ten[4], stored[12:268, 12:268])  # 12.5 rounds to even, as torchvision does
    np.testing.assert_array_equal(make_views(stored, 256, "centre")[0], center_view(stored, 256))
    np.testing.assert_array_equal(ten[5], ten[1][:, ::-1])  # top left of the mirror image is the mirrored top right
    np.testing.assert_array_equal(make_views(stored, 281, "one"), stored[None])


def test_a_view_for_training_lies_anywhere_and_is_mirrored_half_the_time() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (35, 35, 3), dtype=np.uint8)
    views = {random_view(stored, 32, tuple(at)).tobytes() for at in np.random.default_rng(1).random((600, 3)).tolist()}
    cuts = [stored[top : top + 32, left : left + 32] for top in range(4) for left in range(4)]
    assert views == {view.tobytes() for cut in cuts for view in (cut, cut[:, ::-1])}
    assert random_view(stored, 35, (0.9, 0.9, 0.1)) is stored  # text and pages, which have the size of a view


def test_views_that_do_not_fit_are_refused() -> None:
    stored = np.zeros((60, 70, 3), np.uint8)
    with pytest.raises(ValueError, match=r"70x60 pixels: no view of 64x64"):
        ten_views(stored, 64)
    with pytest.raises(ValueError, match=r"70x60 pixels, its one view must be 64x64"):
        make_views(stored, 64, "one")
