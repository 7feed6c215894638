"""Depth 1, 2 and 4 side by side on rendered text: more codes a position, better pictures and more words that OCR reads.

`python tests/tokenize_jobs/test_depths.py FOLDER STEPS` writes FOLDER/depths.png and prints the table of
docs/tokenizer.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from data_specs import open_shards
from data_specs.spec import Spec, load_spec
from pipeline.job import RENDER
from pipeline.png import encode_photo
from pipeline.workers import Workers, kept
from tokenize_jobs.decode import decode_codes, grid
from tokenize_jobs.encode import encode_views, prepare
from tokenize_jobs.training import fit
from tokenize_jobs.weights import load_tokenizer
from train.evaluation.images import reconstruction_quality
from train.evaluation.ocr import find_engine, load_engine
from train.evaluation.rocr import rocr

DEPTHS, SHOWN = (1, 2, 4), 8
SOURCE = "{kind: docstrings, passages: %d, min_words: 6, max_words: 12, vocabulary: 200}"


def spec_of(depth: int, steps: int, passages: int, images: str = "images/train") -> Spec:
    """The demo's spec at another depth, on rendered text only."""
    layers = list(range(6 - depth, 6))
    return load_spec(
        "demo",
        [
            f"shape.depth={depth}",
            f"transformer.head_layers={layers}",
            f"render.sources=[{SOURCE % passages}]",
            f"tokenizer.steps={steps}",
            "tokenizer.encoder=convolutional",
            f"tokenizer.images=[{{manifest: {images}}}]",
        ],
    )


def side_by_side(
    folder: Path, steps: int, passages: int, num: int, depths: tuple[int, ...] = DEPTHS, workers: int = 0
) -> list[dict[str, float]]:
    """Trains a tokenizer for each depth on the same images; PSNR, SSIM and OCR's word accuracy on `num` others."""
    with kept(Workers(num_workers=workers)) as same:
        RENDER.make(spec_of(4, steps, passages), str(folder), same)
    val = open_shards(str(folder / "images/val"))[:num]
    real, texts = np.stack([item["image"] for item in val]), [item["json"]["text"] for item in val]
    rows, shown = [{"depth": 0, **words(real, texts)}], [*real[:SHOWN]]
    for depth in depths:
        root = str(folder / f"depth{depth}")
        spec = spec_of(depth, steps, passages, str(folder / "images/train"))
        fit(spec, root)
        model = prepare(load_tokenizer(f"{root}/tokenizer"), 1)
        copies = decode_codes(model, np.stack(list(encode_views(model, iter(real), spec))))
        quality = reconstruction_quality(zip(real, copies, strict=True))
        rows.append({"depth": depth, "psnr": quality.psnr, "ssim": quality.ssim, **words(copies, texts)})
        shown += [*copies[:SHOWN]]
    enlarged = [image.repeat(2, 0).repeat(2, 1) for image in shown]
    (folder / "depths.png").write_bytes(encode_photo(grid(enlarged, columns=SHOWN)))
    return rows


def words(images: np.ndarray, texts: list[str]) -> dict[str, float]:
    """Share of the drawn words that OCR reads, where OCR is installed."""
    if find_engine() is None:
        return {}
    read = [reading.text for reading in load_engine().read(list(images))]
    return {"word_accuracy": rocr(texts, read, [str(n) for n in range(len(texts))]).word_accuracy}


def test_more_depth_is_better(tmp_path: Path) -> None:
    _, *rows = side_by_side(tmp_path, 40, 100, 8, (1, 4))
    psnr = [row["psnr"] for row in rows]
    assert psnr == sorted(psnr) and psnr[-1] > psnr[0] + 0.5


@pytest.mark.long
def test_more_depth_is_better_after_ten_minutes_each(tmp_path: Path, ray_session: None) -> None:
    _, *rows = side_by_side(tmp_path, 9000, 8000, 256, workers=2)
    for name in ("psnr", "word_accuracy"):
        values = [row[name] for row in rows if name in row]
        assert values == sorted(values)


if __name__ == "__main__":
    for row in side_by_side(Path(sys.argv[1]), int(sys.argv[2]), 8000, 128, workers=2):
        print(row)
