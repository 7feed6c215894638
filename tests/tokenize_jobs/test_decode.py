"""Pixels and pictures: rounding as the authors' script or to the nearest, samples.npz in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tokenize_jobs.decode import to_uint8, write_npz


def test_truncation_is_that_of_the_authors_script_and_nearest_is_closest() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 40, 40)
    plain = np.clip(images.numpy() * np.float32(0.5) + np.float32(0.5), 0, 1)
    authors = (plain.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    assert np.array_equal(to_uint8(images, "truncate"), authors)
    off = to_uint8(images, "nearest") - plain.transpose(0, 2, 3, 1).astype(float) * 255
    assert np.abs(off).max() <= 0.5 + 1e-4 and (to_uint8(images, "nearest") > authors).any()


class Many(Sequence):
    """So many images of 64 KiB, each made when it is asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index >= self.number:
            raise IndexError(index)
        return {"image": np.full((128, 170, 3), index % 251, np.uint8)}


def test_the_npz_of_many_images_is_written_image_by_image(tmp_path: Path) -> None:
    tracemalloc.start()
    write_npz(Many(500), str(tmp_path / "samples.npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # all of them are 33 MB
    images = np.load(tmp_path / "samples.npz", allow_pickle=False)["arr_0"]
    assert images.shape == (500, 128, 170, 3) and np.array_equal(images[:, 5, 5, 1], np.arange(500) % 251)
