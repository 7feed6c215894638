"""Recipes of the tokenizer side by side at equal steps, on rendered text and on typeset pages.

`python tests/tokenize_jobs/test_recipes.py FOLDER STEPS` trains each with two seeds and prints the table of
docs/tokenizer.md. What stands in it without being here was tried by changing the code, and did not stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from data_specs import open_shards
from data_specs.spec import Spec, load_spec
from pipeline.job import RENDER
from pipeline.workers import Workers
from tokenize_jobs.decode import decode_codes
from tokenize_jobs.encode import encode_views
from tokenize_jobs.training import fit
from tokenize_jobs.weights import load_tokenizer
from train.evaluation.images import reconstruction_quality

SOURCES = {
    "text": "{kind: docstrings, passages: %d, min_words: 6, max_words: 12, vocabulary: 200}",
    "pages": "{kind: typeset, documents: %d, vocabulary: 200}",
}
RECIPES = {"plain": ["tokenizer.shortcut=false"], "shortcut": []}
SEEDS, SCORED = (0, 1), 128


def spec_of(data: str, documents: int, steps: int, *overrides: str) -> Spec:
    """The demo's spec (64 px, 8x8x4, V=512, shortcut) on one kind of images, with batches of 16 and half the rate."""
    common = ["render.val_share=0.2", "tokenizer.batch_size=16", "tokenizer.learning_rate=4e-3"]
    common += ["tokenizer.encoder=convolutional"]
    source = f"render.sources=[{SOURCES[data] % documents}]"
    return load_spec("demo", [*common, source, f"tokenizer.steps={steps}", *overrides])


def score(folder: Path, data: str, documents: int, steps: int, recipe: list[str], seed: int) -> float:
    """PSNR in dB on images of the validation split after training by a recipe on FOLDER/images."""
    images = f"tokenizer.images=[{{manifest: {folder / 'images/train'}}}]"
    spec = spec_of(data, documents, steps, images, f"seed={seed}", *recipe)
    root = str(folder / "-".join(("run", *recipe, str(seed))))
    fit(spec, root)
    real = [item["image"] for item in open_shards(str(folder / "images/val"))[:SCORED]]
    model = load_tokenizer(f"{root}/tokenizer")
    copies = decode_codes(model, np.stack(list(encode_views(model, iter(real), spec))))
    return float(reconstruction_quality(zip(real, copies, strict=True)).psnr)


def test_the_shortcut_beats_the_plain_recipe(tmp_path: Path) -> None:
    RENDER.make(spec_of("text", 100, 40), str(tmp_path), Workers(num_workers=0))
    plain, ours = (score(tmp_path, "text", 100, 40, RECIPES[name], 0) for name in ("plain", "shortcut"))
    assert ours > plain + 0.5


if __name__ == "__main__":
    for data, documents in (("text", 2000), ("pages", 8)):
        folder = Path(sys.argv[1], data)
        RENDER.make(spec_of(data, documents, 1), str(folder), Workers(num_workers=2))
        for name, recipe in RECIPES.items():
            scores = [score(folder, data, documents, int(sys.argv[2]), recipe, seed) for seed in SEEDS]
            print(f"{data}: {name}: {', '.join(f'{psnr:.2f}' for psnr in scores)} dB", flush=True)
