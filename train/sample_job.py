"""Puts sampling on Ray: units are ranges of image indices, the output is a code shard set (`dnd sample`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from data_specs import digest, open_shards, storage
from data_specs.manifest import read_manifest
from data_specs.receipts import commit
from data_specs.records import Identity, Manifest, RangeUnit, Receipt, Sample
from data_specs.root import record_spec
from data_specs.spec import Spec
from data_specs.units import Plan, read_plan, write_plan
from pipeline.runner import Stage, Workers, run_plan
from tokenize_jobs.device import pick_device
from tokenize_jobs.encode import npy
from train.draw import classes_of, sample_batch
from train.linear import packed, quantize_int8
from train.model import DnDTransformer
from train.sampling import FREE
from train.weights import load_transformer


def sample(spec: Spec, root: str, workers: Workers) -> Manifest:
    """Draws spec.sample.num images' codes into ROOT/samples/NAME/codes; image i draws from (seed, i).

    A worker holds the whole model: one a GPU, or one a group of spec.sample.threads cores.
    """
    plan = _plan(spec, root, workers)
    workers = workers if workers.gpus else workers._replace(cpus=float(spec.sample.threads))
    refuse_misfit(spec, storage.join(root, "transformer", "transformer.json"))
    record_spec(spec, root, f"samples/{spec.sample.name}", ())
    return run_plan(plan, partial(_setup, spec, root, plan), workers, "codes", f"sample {spec.sample.name}", "images")


def _plan(spec: Spec, root: str, workers: Workers) -> Plan:
    set_uri = storage.join(root, "samples", spec.sample.name, "codes")
    inputs, given = {"transformer": _weights_sha256(spec, root)}, spec.sample.given
    if given:
        inputs["given"] = read_manifest(storage.join(root, given.codes, "manifest.json")).digest
    identity = Identity(
        stage="sample",
        spec={
            "sample": spec.sample.model_dump(mode="json", exclude={"name": True, "rounding": True, "given": {"codes"}})
        },
        inputs=inputs,
        seed=spec.seed,
        versions={"torch": torch.__version__, "device": workers.device},
    )
    if plan := read_plan(set_uri):
        digest.require_same(set_uri, plan.identity, identity)
        return plan
    size = spec.sample.images_per_unit
    starts = range(0, spec.sample.num, size)
    units = (RangeUnit(unit=n, first=s, count=min(size, spec.sample.num - s)) for n, s in enumerate(starts))
    return write_plan(set_uri, digest.digest_of(identity), identity, units)


def _weights_sha256(spec: Spec, root: str) -> str:
    uri = storage.join(root, "transformer", "ema.safetensors" if spec.sample.ema else "transformer.safetensors")
    try:
        found = hashlib.sha256()
        with storage.open_stream(uri) as file:
            while chunk := file.read(2**24):
                found.update(chunk)
        return found.hexdigest()
    except FileNotFoundError:
        raise ValueError(f"{uri}: no trained transformer; run `dnd train` or `dnd import transformer` first") from None


def refuse_misfit(spec: Spec, uri: str) -> None:
    """Raises ValueError where the model described at `uri`, a transformer.json or tokenizer.json, is not the spec's."""
    try:
        made = json.loads(storage.read_text(uri))
    except FileNotFoundError:
        name = uri.rpartition("/")[2].removesuffix(".json")
        raise ValueError(f"{uri}: no {name}; train one or run `dnd import {name}` first") from None
    depth = len(made["head_layers"]) if "head_layers" in made else made["depth"]
    has = [*made["grid"], depth, made["codebook_size"]]
    wanted = [*spec.shape.grid, spec.shape.depth, spec.shape.codebook_size]
    if "num_classes" in made:
        has, wanted = [*has, made["num_classes"]], [*wanted, spec.transformer.num_classes]
    if has != wanted:
        raise ValueError(
            f"{uri}: grid, depth, codebook and classes are {has}, by the spec {wanted}: use the preset that it was "
            "trained or imported by"
        )


def _setup(spec: Spec, root: str, plan: Plan) -> Stage:
    """Runs once in each worker: loads the transformer and returns the stage."""
    torch.set_num_threads(spec.sample.threads)
    uri = storage.join(root, "transformer")
    dtype = torch.float32 if spec.sample.dtype == "float32" else torch.bfloat16
    model = load_transformer(uri, ema=spec.sample.ema, device=pick_device(), dtype=dtype)
    model = quantize_int8(model) if spec.sample.dtype == "int8" else packed(model)
    return sample_stage(model, spec, root, plan.set_uri, plan.digest)


def sample_stage(
    model: DnDTransformer, spec: Spec, root: str, set_uri: str, plan_digest: str
) -> Callable[[RangeUnit], Receipt]:
    """The stage `unit -> receipt` for a loaded transformer; a unit is a range of images (`first`, `count`)."""

    return lambda unit: commit(set_uri, plan_digest, unit.unit, sample_range(model, spec, unit.first, unit.count, root))


def sample_range(model: DnDTransformer, spec: Spec, first: int, count: int, root: str = "") -> Iterator[Sample]:
    """Code samples of images first … first + count - 1; every batch is full, the last one padded."""
    part, (rows, columns) = spec.sample, spec.shape.grid
    for start in range(first, first + count, part.batch_size):
        used = min(part.batch_size, first + count - start)
        classes = classes_of(spec, start, part.batch_size)
        codes = sample_batch(model, spec, classes, start, given_codes(spec, root, start, part.batch_size))
        grids = codes[:used].reshape(used, 1, rows, columns, -1).cpu().numpy().astype(np.uint16)
        for offset in range(used):
            index, cls = start + offset, int(classes[offset])
            about = json.dumps({"id": str(index), "source": f"sample {part.name}"}, sort_keys=True).encode()
            yield Sample(f"{index:08d}", {"codes.npy": npy(grids[offset]), "cls": b"%d" % cls, "json": about})


def given_codes(spec: Spec, root: str, first: int, count: int) -> torch.Tensor | None:
    """What spec.sample.given fixes for images first … first + count - 1: codes [count, L, D], FREE where to sample.

    Raises ValueError for codes that are not of the spec's shape.
    """
    part, shape = spec.sample.given, (*spec.shape.grid, spec.shape.depth)
    if part is None:
        return None
    items = open_shards(storage.join(root, part.codes))
    codes = np.stack([items[i % len(items)]["codes"][0] for i in range(first, first + count)]).astype(np.int64)
    if codes.shape[1:] != shape:
        raise ValueError(f"sample.given.codes {part.codes}: codes of {codes.shape[1:]}, the spec's are {shape}")
    if part.depths is not None:
        codes[..., part.depths :] = FREE
    if part.hole is not None:
        top, left, bottom, right = part.hole
        codes[:, top:bottom, left:right] = FREE
    return torch.from_numpy(codes).flatten(1, 2)
