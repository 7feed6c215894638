"""Encoding: one image shard becomes one code shard. A plain function; `job.py` puts it on Ray.

Batches run across samples at one compute size, the last one padded, so codes depend on nothing but plan and unit.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from data_specs import table
from data_specs.ahead import in_threads
from data_specs.npy import array_bytes
from data_specs.reader import decode_image
from data_specs.records import Dropped, Reason, Sample, TableRow, parse_info
from data_specs.shards import Shard
from data_specs.spec import Spec
from tokenize_jobs.device import autocast, memory_of, naming_what_to_lower, pick_device, to_device
from tokenize_jobs.memory import fitting_compute_batch
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.views import NUM_VIEWS, Pixels, ViewKind, make_views

BLOCK = 16  # images that a thread decodes at a time
GPU_THREADS = 4  # threads that decode images for a GPU; a CPU worker has one, beside those that compute
BATCH = "tokenize.compute_batch"
KEPT_JSON = ("id", "source", "page", "licence", "text")


def encode_shard(model: RQVAE, spec: Spec, split: str, shard: Shard) -> Iterator[Sample | Dropped]:
    """Encode the samples of an image shard that match spec.tokenize.where, in order; codes are [views, h, w, d]."""
    rows = table.table_of(shard).to_pylist()
    where = spec.tokenize.where
    numbers = np.arange(len(shard)) if where is None else table.matching(shard, where)
    kind = _view_kind(spec, split)
    size = spec.shape.image_size
    threads = GPU_THREADS if next(model.parameters()).is_cuda else 1
    ahead = threads + -(-(spec.tokenize.compute_batch or 0) // (BLOCK * NUM_VIEWS[kind]))
    blocks = np.split(numbers, range(BLOCK, len(numbers), BLOCK))
    loaded = in_threads((partial(_load, shard, block, size, kind) for block in blocks), threads, ahead)
    codes = encode_views(model, (view for block in loaded for sample in block for view in sample), spec)
    for number in numbers.tolist():
        of_sample = np.stack(list(islice(codes, NUM_VIEWS[kind])))
        yield code_sample(shard.key(number), of_sample, shard.fields(number), rows[number])
    for number in np.setdiff1d(np.arange(len(shard)), numbers).tolist():
        yield Dropped(shard.key(number), "", Reason.WHERE)


def _view_kind(spec: Spec, split: str) -> ViewKind:
    """Ten crops are for training images; validation images of such presets are stored at their size."""
    return "centre" if spec.tokenize.views == "ten_crop" and split != "train" else spec.tokenize.views


def _load(shard: Shard, numbers: np.ndarray, size: int, kind: ViewKind) -> list[Pixels]:
    """Return the views [views, size, size, 3] of each of these samples."""
    fields = ((shard.fields(number), f"{shard.uri}: {shard.key(number)}") for number in numbers.tolist())
    return [make_views(decode_image(of.get("png", b""), where), size, kind) for of, where in fields]


@torch.inference_mode()
def encode_views(model: RQVAE, views: Iterator[np.ndarray], spec: Spec) -> Iterator[np.ndarray]:
    """Yield codes uint16 of spec.codes of each image uint8 [H, W, 3], by batches of spec.tokenize.compute_batch.

    A GPU is given the next batch before the codes of the last are waited for.
    """
    device = next(model.parameters()).device
    size = spec.tokenize.compute_batch
    assert size is not None, "job.py settles the batch before it plans"
    under_way = deque[tuple[int, Tensor]]()
    while batch := list(islice(views, size)):
        images = np.stack(batch + batch[:1] * (size - len(batch)))
        with autocast(device, getattr(torch, spec.tokenize.dtype)), naming_what_to_lower(BATCH, size):
            under_way.append((len(batch), model.encode(to_device(images, device))))
        if device.type == "cpu" or len(under_way) > 1:
            yield from _codes(*under_way.popleft(), spec)
    for count, codes in under_way:
        yield from _codes(count, codes, spec)


def _codes(count: int, codes: Tensor, spec: Spec) -> np.ndarray:
    few = codes[:count].cpu().numpy()
    return (flattened(few, spec.shape.codebook_size) if spec.tokenize.flatten else few).astype(np.uint16)


def flattened(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Lay out codes [B, h, w, d] as [B, h, wd, 1], those of a position in a row, the k-th raised by k codebooks."""
    return rearrange(codes + np.arange(codes.shape[-1]) * codebook_size, "b h w d -> b h (w d) 1")


def code_sample(key: str, codes: np.ndarray, fields: dict[str, bytes], row: TableRow) -> Sample:
    """Return a sample of codes uint16 [views, h, w, d]: with the class, a few keys of the json, the image's row."""
    few = {k: v for k, v in parse_info(fields["json"], f"{key}: json").items() if k in KEPT_JSON}
    about = json.dumps(few, sort_keys=True).encode()
    return Sample(key, {"codes.npy": array_bytes(codes), "cls": fields["cls"], "json": about}, row)


def prepare(model: RQVAE, threads: int) -> RQVAE:
    """Put a tokenizer on this worker's device with the spec's number of threads, ready to encode and decode."""
    torch.set_num_threads(threads)
    return model.eval().to(pick_device())


@torch.inference_mode()
def fitting_batch(model: RQVAE, dtype: torch.dtype = torch.float32, share: float = 1.0) -> int:
    """Return how many images a prepared tokenizer can encode, with autocast to `dtype`, and decode at once.

    On a GPU the power of two that is counted to fit into `share` of its memory, tried out. On a CPU, where larger ones
    gain nothing, the largest up to 32 whose features (four float32 maps at full size) take about a gigabyte.
    """
    device = next(model.parameters()).device
    config = model.config
    height, width = config.image_size
    if device.type == "cpu":
        of_image = 4 * 4 * config.ch * (height // config.patch) * (width // config.patch)
        return next((size for size in (32, 16, 8, 4, 2) if size * of_image <= 2**30), 1)
    size = fitting_compute_batch(config, dtype, share * memory_of(device))
    while size > 1:
        try:
            with autocast(device, dtype):
                codes = model.encode(to_device(np.zeros((size, height, width, 3), np.uint8), device))
            model.decode(codes)
            return size
        except torch.OutOfMemoryError:
            size //= 2
            torch.cuda.empty_cache()
    return 1
