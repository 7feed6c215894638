"""Pre-tokenizing: image shard to committed code shard against the bare encoder on images that are already decoded."""

from __future__ import annotations

import tempfile
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.codes import IDENTITY, write_set
from benchmarks.rounds import Comparison, compare
from data_specs import open_shards, storage
from data_specs.digest import digest_of
from data_specs.receipts import commit
from data_specs.records import Sample, ShardUnit
from data_specs.spec import Spec, load_spec
from pipeline.follow import by_shards
from pipeline.png import encode_photo
from tokenize_jobs.device import autocast, to_device
from tokenize_jobs.encode import encode_shard, fitting_batch, prepare
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE

MOST, PIXELS = 512, 2**21  # of all images: 512 of 64 px, 32 of 256 px


def tokenize(preset: str, rounds: int) -> Comparison:
    """Measure the images/s of one worker with the spec's threads, dtype and compute batch; weights are random."""
    spec = load_spec(preset, ["tokenize.views=one", "render.store=image"])
    torch.manual_seed(0)
    model = prepare(RQVAE(config_of(spec)), spec.tokenize.threads)
    batch = spec.tokenize.compute_batch or fitting_batch(model, getattr(torch, spec.tokenize.dtype))
    spec = spec.changed("tokenize", compute_batch=batch)
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as folder:
        images = _images(spec, folder)
        shard = open_shards(folder).manifest.shardlist[0]
        numbers = iter(range(10**9))
        work = by_shards(folder, partial(encode_shard, model, spec, "val"))

        def ours() -> int:
            number = next(numbers)
            unit = ShardUnit(
                unit=number, split="val", shard=shard.url, sha256=shard.sha256, index_sha256=shard.index_sha256
            )
            codes = storage.join(folder, f"codes{number}")
            return commit(codes, digest_of(IDENTITY), number, work(unit)).written

        return compare(ours, lambda: _bare(model, images, spec, batch), rounds)


def _images(spec: Spec, folder: str) -> np.ndarray:
    """Write a shard of drawn text and return its images, uint8 [N, H, W, 3]."""
    size = spec.shape.image_size
    images = np.stack([_drawn(number, size) for number in range(min(MOST, max(8, PIXELS // size**2)))])
    fields = ({"png": encode_photo(image), "cls": b"0", "json": b"{}"} for image in images)
    write_set(folder, "images", [(Sample(f"{number:06d}", of) for number, of in enumerate(fields))])
    return images


def _drawn(number: int, size: int) -> np.ndarray:
    image = Image.new("RGB", (size, size), "white")
    lines = ("".join(chr(97 + (number + column**2) % 26) for column in range(line, size)) for line in range(size // 12))
    ImageDraw.Draw(image).multiline_text((2, 2), "\n".join(lines), fill="black")
    return np.asarray(image)


@torch.inference_mode()
def _bare(model: RQVAE, images: np.ndarray, spec: Spec, size: int) -> int:
    device = next(model.parameters()).device
    dtype = getattr(torch, spec.tokenize.dtype)
    for start in range(0, len(images), size):
        with autocast(device, dtype):
            model.encode(to_device(images[start : start + size], device)).cpu()
    return len(images)
