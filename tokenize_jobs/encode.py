"""Encoding: one image shard becomes one code shard. A plain function; `job.py` puts it on Ray.

Batches run across samples at one compute size, the last one padded, so codes depend on nothing but plan and unit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from data_specs.reader import decode_fields
from data_specs.receipts import Receipt, commit
from data_specs.shards import Shard
from data_specs.spec import Spec
from data_specs.units import Sample, Unit
from tokenize_jobs.device import autocast, pick_device, to_tensor
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.views import NUM_VIEWS, ViewKind, make_views

KEPT_JSON = ("id", "source", "page", "licence", "text")


def encode_stage(model: RQVAE, spec: Spec, set_uri: str, digest: str) -> Callable[[Unit], Receipt]:
    """The stage `unit -> receipt` for a loaded tokenizer; a unit names an image shard (`shard`) and its `sha256`."""

    def stage(unit: Unit) -> Receipt:
        facts = {"read": [{"uri": unit["shard"], "sha256": unit["sha256"]}]}
        return commit(set_uri, digest, unit["unit"], encode_shard(model, spec, unit["shard"], unit["split"]), facts)

    return stage


def encode_shard(model: RQVAE, spec: Spec, shard_uri: str, split: str) -> Iterator[Sample]:
    """Samples of codes [views, h, w, d] for the samples of an image shard, in order."""
    shard = Shard(shard_uri)
    kind, size = _view_kind(spec, split), spec.shape.image_size
    with ThreadPoolExecutor(1) as pool:
        work = (_load(shard, number, size, kind) for number in range(len(shard)))
        loaded = _ahead(pool, work, spec.tokenize.compute_batch)
        codes = encode_views(model, (view for sample in loaded for view in sample), spec)
        for number in range(len(shard)):
            of_sample = np.stack(list(islice(codes, NUM_VIEWS[kind])))
            yield code_sample(shard.key(number), of_sample, shard.fields(number))


def _view_kind(spec: Spec, split: str) -> ViewKind:
    """Ten crops are for training images; validation images of such presets are stored at their size."""
    return "centre" if spec.tokenize.views == "ten_crop" and split != "train" else spec.tokenize.views


def _load(shard: Shard, number: int, size: int, kind: ViewKind) -> np.ndarray:
    return make_views(decode_fields("", shard.fields(number))["image"], size, kind)


def _ahead(pool: ThreadPoolExecutor, work: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Results of a lazy iterator, `count` of them produced at a time in a thread while the last ones are used."""
    take = lambda: list(islice(work, count))  # noqa: E731
    block = pool.submit(take)
    while items := block.result():
        block = pool.submit(take)
        yield from items


@torch.inference_mode()
def encode_views(model: RQVAE, views: Iterator[np.ndarray], spec: Spec) -> Iterator[np.ndarray]:
    """Codes uint16 [h, w, d] of each image uint8 [H, W, 3]; every batch has spec.tokenize.compute_batch images."""
    device, size = next(model.parameters()).device, spec.tokenize.compute_batch
    while batch := list(islice(views, size)):
        images = np.zeros((size, *batch[0].shape), np.uint8)
        images[: len(batch)] = batch
        with autocast(device, getattr(torch, spec.tokenize.dtype)):
            codes = model.encode(to_tensor(images).to(device, memory_format=torch.channels_last))
        yield from codes[: len(batch)].cpu().numpy().astype(np.uint16)


def code_sample(key: str, codes: np.ndarray, fields: dict[str, bytes]) -> Sample:
    """A code shard's sample: codes uint16 [views, h, w, d], the class, and the few fields of json that stay useful."""
    few = {k: v for k, v in json.loads(fields["json"]).items() if k in KEPT_JSON}
    return Sample(
        key, {"codes.npy": npy(codes), "cls": fields["cls"], "json": json.dumps(few, sort_keys=True).encode()}
    )


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def prepare(model: RQVAE, threads: int) -> RQVAE:
    """Puts a tokenizer on this worker's device with the spec's number of threads, ready to encode and decode."""
    torch.set_num_threads(threads)
    return model.eval().to(pick_device(), memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
