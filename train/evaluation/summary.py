"""The figures of the report, for the validation split of a root: written to ROOT/evaluation/summary.json.

PSNR and codebook usage of the tokenizer, bits per code of the transformer, and the share of real words that OCR reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from data_specs import open_shards, storage
from data_specs.reader import ShardSet
from data_specs.spec import Spec
from train.evaluation.codes import codebook_usage, count_codes, histogram_baseline
from train.evaluation.images import reconstruction_quality
from train.evaluation.ocr import find_engine, load_engine
from train.evaluation.reading import spread
from train.evaluation.results import with_provenance
from train.evaluation.words import drawn_texts, real_word_share, vocabulary

AIM = 0.6  # share of generated words that should be real (demo)


def summarise(spec: Spec, root: str) -> str:
    """Scores what the root holds and returns the address of the result; with the same inputs it returns at once."""
    uri, inputs = storage.join(root, "evaluation", "summary.json"), _inputs(spec, root)
    if storage.exists(uri) and json.loads(storage.read_text(uri)).get("inputs") == inputs:
        return uri
    codes = {split: open_shards(storage.join(root, "codes", split)) for split in ("train", "val")}
    originals = open_shards(storage.join(root, "images/val"))
    reconstructions = open_shards(storage.join(root, "reconstructions/val/images"))
    samples = open_shards(storage.join(root, "samples", spec.sample.name, "images"))
    counts = {
        split: count_codes((item["codes"] for item in of), spec.shape.codebook_size) for split, of in codes.items()
    }
    result = {
        "inputs": inputs,
        "split": "val",
        "reconstruction": reconstruction_quality(_pairs(originals, reconstructions, spec.evaluate.reconstructions)),
        "codebook": codebook_usage(counts["val"]),
        "histogram": histogram_baseline(counts["train"], counts["val"]),
        "transformer": last_validation(root),
        "words": _words(spec, root, {"real": originals, "reconstructed": reconstructions, "generated": samples}),
    }
    storage.write_text(uri, json.dumps(with_provenance(result, sys.argv), indent=1) + "\n")
    return uri


def last_validation(root: str) -> dict[str, Any] | None:
    """The last row of the training's metrics that holds a validation, or None."""
    uri = storage.join(root, "transformer", "metrics.jsonl")
    rows = [json.loads(line) for line in storage.read_text(uri).splitlines()] if storage.exists(uri) else []
    return next((row for row in reversed(rows) if "val_bits_per_code" in row), None)


def _inputs(spec: Spec, root: str) -> dict[str, str]:
    names = [
        "images/val",
        "codes/train",
        "codes/val",
        "reconstructions/val/images",
        f"samples/{spec.sample.name}/images",
    ]
    return {name: open_shards(storage.join(root, name)).manifest.digest for name in names}


def _pairs(originals: ShardSet, copies: ShardSet, limit: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for index in range(min(limit, len(originals))):
        original, copy = originals[index], copies[index]
        assert original["__key__"] == copy["__key__"], "reconstructions follow the order of their originals"
        yield original["image"], copy["image"]


def _words(spec: Spec, root: str, sets: dict[str, ShardSet]) -> dict[str, Any]:
    """Shares of real words by kind of image; says so where OCR is absent or no text is known."""
    known = vocabulary(drawn_texts(open_shards(storage.join(root, "images/train"))))
    if find_engine() is None or not known:
        return {"missing": "no OCR engine is installed" if known else "the images have no text"}
    engine = load_engine()
    shares = {}
    for kind, items in sets.items():
        readings = engine.read([items[i]["image"] for i in spread(len(items), spec.evaluate.ocr_images)])
        texts = [reading.text for reading in readings]
        shares[kind] = real_word_share(texts, known) | {"texts": texts[:32]}
    return {"engine": engine.name, "aim": AIM, "vocabulary": len(known), **shares}
