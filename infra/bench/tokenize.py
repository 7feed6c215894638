"""Pre-tokenizing: image shard to committed code shard against the bare encoder on images that are already decoded."""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from data_specs import open_shards, storage
from data_specs.manifest import merge
from data_specs.receipts import commit
from data_specs.spec import Spec, load_spec
from data_specs.units import Sample, write_plan
from infra.bench.rounds import Comparison, compare
from tokenize_jobs.decode import png
from tokenize_jobs.device import autocast, to_tensor
from tokenize_jobs.encode import encode_stage, prepare
from tokenize_jobs.fit import config_of
from tokenize_jobs.rqvae import RQVAE

IMAGES = 512


def tokenize(preset: str, rounds: int) -> Comparison:
    """Images/s of one worker with the spec's threads, dtype and compute batch; weights are random."""
    spec = load_spec(preset)
    torch.manual_seed(0)
    model = prepare(RQVAE(config_of(spec)), spec.tokenize.threads)
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as folder:
        images = _images(spec, folder)
        shard = open_shards(folder).shard_uris[0]
        numbers = iter(range(10**9))

        def ours() -> int:
            number = next(numbers)
            stage = encode_stage(model, spec, storage.join(folder, f"codes{number}"), "bench")
            return int(stage({"unit": number, "shard": shard, "sha256": "", "split": "val"})["written"])

        return compare(ours, lambda: _bare(model, images, spec), rounds)


def _images(spec: Spec, folder: str) -> np.ndarray:
    """Writes a shard of images (a pattern with noise) and returns them, uint8 [N, H, W, 3]."""
    size = spec.shape.image_size
    pattern = np.indices((size, size)).sum(0)[None, :, :, None] % 251
    images = (pattern + np.random.default_rng(0).integers(5, size=(IMAGES, size, size, 3))).astype(np.uint8)
    plan = write_plan(folder, "bench", {"stage": "bench"}, [{"unit": 0}])
    fields = ({"png": png(image), "cls": b"0", "json": b"{}"} for image in images)
    commit(folder, plan.digest, 0, (Sample(f"{number:06d}", part) for number, part in enumerate(fields)))
    merge(plan, "images")
    return images


@torch.inference_mode()
def _bare(model: RQVAE, images: np.ndarray, spec: Spec) -> int:
    device, dtype = next(model.parameters()).device, getattr(torch, spec.tokenize.dtype)
    for start in range(0, len(images), spec.tokenize.compute_batch):
        batch = to_tensor(images[start : start + spec.tokenize.compute_batch])
        with autocast(device, dtype):
            model.encode(batch.to(device, memory_format=torch.channels_last)).cpu()
    return len(images)
