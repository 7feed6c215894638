"""`dnd reconstruct`: decodes a split code by code, scores each depth, and draws them side by side."""

from __future__ import annotations

import json
import sys
from typing import Any

from data_specs import open_shards, storage
from data_specs.spec import Spec
from pipeline.workers import Workers
from tokenize_jobs.decode import png
from tokenize_jobs.job import reconstruct as write
from tokenize_jobs.task import lpips_of
from train.evaluation.reading import spread
from train.evaluation.reconstruction import depth_picture, evaluate_by_depth
from train.evaluation.results import with_provenance


def reconstruct(spec: Spec, root: str, split: str, workers: Workers, shown: int) -> dict[str, Any]:
    """Writes ROOT/reconstructions/SPLIT with depths.png and ROOT/evaluation/reconstruction-SPLIT.json; returns that."""
    lpips = lpips_of(spec, root)
    by_depth = [open_shards(storage.join(root, name)) for name in write(spec, root, split, workers)]
    originals = open_shards(storage.join(root, spec.tokenize.images[split]))  # type: ignore[index]
    codes = open_shards(storage.join(root, "codes", split))
    result = evaluate_by_depth(originals, by_depth, codes, spec.shape, spec.evaluate.reconstructions, lpips)
    result = with_provenance({"split": split} | result, sys.argv)
    picture = depth_picture(originals, by_depth, spread(len(originals), shown))
    storage.write_bytes(storage.join(root, "reconstructions", split, "depths.png"), png(picture))
    uri = storage.join(root, "evaluation", f"reconstruction-{split}.json")
    storage.write_text(uri, json.dumps(result, indent=1) + "\n")
    return result
