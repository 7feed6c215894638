"""Image shard sets of drawn words and small specs, for the tests of the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from code_sets import write_set
from PIL import Image, ImageDraw

from data_specs.records import Sample
from data_specs.spec import Spec, load_spec
from pipeline.png import encode_photo

WORDS = ("class", "index", "value", "return", "object", "string", "number", "module")


def drawn(number: int, side: int, ink: str = "black") -> np.ndarray:
    """uint8 [side, side, 3]: a few words, which `number` decides."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (side, side), "white")
    for top in range(0, side - 8, 11):
        ImageDraw.Draw(image).text((int(rng.integers(4)), top), WORDS[rng.integers(8)], fill=ink)
    return np.asarray(image)


def write_images(uri: str, shards: list[int], side: int = 32, ink: str = "black") -> None:
    """A set of shards with the given numbers of images."""

    def sample(number: int) -> Sample:
        picture = encode_photo(drawn(number, side, ink))
        return Sample(f"s{number:06d}", {"png": picture, "cls": b"0", "json": b"{}"})

    write_set(uri, "images", shards, sample)


def tiny_spec(*overrides: str) -> Spec:
    """A small tokenizer of 32 px images, 4x4x2 codes of 32 rows, float32, eight images a step, each step logged."""
    tiny = [
        "shape={image_size: 32, grid: [4, 4], depth: 2, codebook_size: 32}",
        "tokenizer={channels: 32, channel_multipliers: [1, 1], patch: 4, res_blocks: 1, embed_dim: 16, shortcut: true, "
        "attention_sizes: [], learning_rate: 0.002, batch_size: 8, steps: 40, checkpoint_every: 20, log_every: 1, "
        "dtype: float32, encoder: convolutional}",
        "tokenize.compute_batch=16",
        "transformer={num_layers: 2, num_heads: 2, width: 32, head_layers: [0, 1]}",
    ]
    return load_spec("demo", [*tiny, *overrides])


def make_root(folder: Path) -> str:
    """A root with image sets, as `dnd render` leaves it."""
    write_images(str(folder / "images/train"), [30, 23])
    write_images(str(folder / "images/val"), [9])
    return str(folder)
