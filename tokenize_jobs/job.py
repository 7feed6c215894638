"""Puts encoding and decoding on Ray: `dnd tokenize` (image shards -> code shards) and `dnd decode` (the way back,
also from the first codes of each position: `dnd reconstruct`)."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import ray
import torch
from PIL import __version__ as pillow_version

from data_specs import digest, open_shards, storage
from data_specs.manifest import read_manifest
from data_specs.receipts import discard
from data_specs.records import Identity, Manifest, ShardEntry, ShardUnit
from data_specs.root import record_spec
from data_specs.spec import Spec
from data_specs.table import check_expression
from data_specs.units import Plan, extend_plan, read_plan, write_plan
from pipeline.runner import Stage, Workers, connect, run_plan
from tokenize_jobs.decode import decode_stage, write_pictures
from tokenize_jobs.encode import encode_stage, fitting_batch, prepare
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import load_tokenizer


def tokenize(spec: Spec, root: str, workers: Workers) -> dict[str, Manifest]:
    """Encodes the image shards of each split into ROOT/codes/SPLIT; returns the manifests by split."""
    if spec.tokenize.where is not None:
        check_expression(spec.tokenize.where)
    spec = settle_batch(spec, root, workers)
    part = {"tokenize": spec.tokenize.model_dump(mode="json", exclude={"images", "tokenizer"})}
    made: dict[str, Manifest] = {}
    for split, images in spec.tokenize.images.items():
        source = _folder(storage.join(root, images))
        plan = _plan(spec, root, "encode", source, f"codes/{split}", split, part, workers)
        record_spec(spec, root, "codes", ("tokenize",))
        setup = partial(_setup, spec, root, source, plan)
        made[split] = run_plan(plan, setup, workers, "codes", f"tokenize {split}")
    return made


def decode(
    spec: Spec, root: str, codes: str, out: str, workers: Workers, pictures: bool = True, depths: int | None = None
) -> Manifest:
    """Decodes a code shard set into ROOT/OUT/images, and its pictures, samples.npz and grid.png beside it.

    depths: only the first so many codes of each position count (default: all).
    """
    spec, source = settle_batch(spec, root, workers), _folder(storage.join(root, codes))
    part: dict[str, Any] = {"rounding": spec.sample.rounding, "compute_batch": spec.tokenize.compute_batch}
    part |= {"threads": spec.tokenize.threads} | ({"depths": depths} if depths else {})
    plan = _plan(spec, root, "decode", source, f"{out}/images", "val", part, workers)
    task = f"decode {codes}" + (f" to depth {depths}" if depths else "")
    manifest = run_plan(plan, partial(_setup, spec, root, source, plan), workers, "images", task)
    grid_uri = storage.join(root, out, "grid.png")
    if pictures and not storage.exists(grid_uri):
        write_pictures(open_shards(plan.set_uri), storage.join(root, out))
    return manifest


def _folder(uri: str) -> str:
    """A shard set's folder, by its own address or that of its manifest."""
    return uri.rpartition("/")[0] if uri.endswith(".json") else uri


def reconstruct(spec: Spec, root: str, split: str, workers: Workers) -> list[str]:
    """Decodes ROOT/codes/SPLIT from 1 … d codes a position; returns the image shard sets, relative to the root.

    The last is the full depth, ROOT/reconstructions/SPLIT/images.
    """
    depth, folder = spec.shape.depth, f"reconstructions/{split}"
    outs = [f"{folder}/depth{depths}" for depths in range(1, depth)] + [folder]
    for depths, out in enumerate(outs, 1):
        decode(spec, root, f"codes/{split}", out, workers, pictures=False, depths=depths if depths < depth else None)
    return [f"{out}/images" for out in outs]


def settle_batch(spec: Spec, root: str, workers: Workers) -> Spec:
    """The spec with a compute batch: its own, that of codes made before under the root, or what fits on a worker."""
    if spec.tokenize.compute_batch:
        return spec
    plans = (read_plan(storage.join(root, f"codes/{split}")) for split in spec.tokenize.images)
    made = (_batch_of(plan.identity) for plan in plans if plan)
    batch = next((batch for batch in made if batch), None) or _probe(spec, root, workers)
    part = spec.tokenize.model_copy(update={"compute_batch": batch})
    return spec.model_copy(update={"tokenize": part})


def _batch_of(identity: Identity) -> int | None:
    part = identity.spec.get("tokenize")
    batch = part.get("compute_batch") if isinstance(part, dict) else None
    return batch if isinstance(batch, int) else None


def _probe(spec: Spec, root: str, workers: Workers) -> int:
    """The batch that fits: tried out on a worker where the workers have GPUs."""
    if not workers.gpus:
        return fitting_batch(_model(spec, root))
    connect(workers)
    probe: Any = ray.remote(lambda: fitting_batch(_model(spec, root)))
    return int(ray.get(probe.options(num_cpus=workers.cpus, num_gpus=workers.gpus).remote()))


def _plan(
    spec: Spec, root: str, stage: str, source: str, target: str, split: str, part: dict[str, Any], workers: Workers
) -> Plan:
    """The plan of a stage that turns each shard of the set at `source` into one of ROOT/`target`."""
    manifest, target_uri = read_manifest(storage.join(source, "manifest.json")), storage.join(root, target)
    identity = Identity(
        stage=stage,
        split=split,
        spec={"shape": spec.shape.model_dump(mode="json"), **part},
        inputs={"shards": _content(manifest), "tokenizer": _tokenizer_sha256(spec, root)},
        versions={"torch": torch.__version__, "pillow": pillow_version, "device": workers.device},
    )
    if plan := read_plan(target_uri):
        inputs = plan.identity.inputs | {"shards": identity.inputs["shards"]}
        digest.require_same(target_uri, plan.identity.model_copy(update={"inputs": inputs}), identity)
        return plan if plan.identity == identity else _followed(plan, identity, manifest, split)
    units = (_unit(number, split, entry) for number, entry in enumerate(manifest.shardlist))
    return write_plan(target_uri, digest.digest_of(identity), identity, units)


def _followed(plan: Plan, identity: Identity, manifest: Manifest, split: str) -> Plan:
    """The plan after its input was extended or lost samples: shards made anew are done again, new ones appended.

    Raises ValueError where the input is another one: a shard of the plan is neither in its manifest nor replaced there.
    """
    now: dict[str, ShardEntry | None] = dict.fromkeys(manifest.emptied)
    now |= {name: entry for entry in manifest.shardlist for name in (entry.url, *entry.replaces)}
    restated, seen = list[ShardUnit](), set[str | None]()
    for unit in plan.units():
        assert isinstance(unit, ShardUnit)
        if unit.shard and unit.shard not in now:
            digest.require_same(plan.set_uri, plan.identity, identity)
        reads = _unit(unit.unit, split, now[unit.shard] if unit.shard else None)
        seen.add(reads.shard)
        if unit.shard and reads != unit:
            restated.append(reads)
    new = [entry for entry in manifest.shardlist if entry.url not in seen]
    for unit in restated:
        discard(plan.set_uri, unit.unit)
    appended = [_unit(number, split, entry) for number, entry in enumerate(new, plan.num_units)]
    return extend_plan(plan, identity, restated + appended)


def _unit(number: int, split: str, entry: ShardEntry | None) -> ShardUnit:
    """A unit that reads a shard of the input's manifest, or nothing where that shard has lost all its samples."""
    name, sha256, index_sha256 = (entry.url, entry.sha256, entry.index_sha256) if entry else (None, None, None)
    return ShardUnit(unit=number, split=split, shard=name, sha256=sha256, index_sha256=index_sha256)


def _content(manifest: Manifest) -> str:
    """Digest of what a shard set holds, whatever made it and wherever it lies."""
    return hashlib.sha256("".join(entry.sha256 for entry in manifest.shardlist).encode()).hexdigest()


def _tokenizer_sha256(spec: Spec, root: str) -> str:
    uri = storage.join(root, spec.tokenize.tokenizer, "tokenizer.safetensors")
    try:
        return hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    except FileNotFoundError:
        raise ValueError(
            f"{uri}: no trained tokenizer; run `dnd train-tokenizer` or `dnd import tokenizer` first"
        ) from None


def _setup(spec: Spec, root: str, source: str, plan: Plan) -> Stage:
    """Runs once in each worker: loads the tokenizer and returns the stage."""
    model = _model(spec, root)
    if plan.identity.stage == "encode":
        return encode_stage(model, spec, source, plan.set_uri, plan.digest)
    depths = plan.identity.spec.get("depths")
    assert depths is None or isinstance(depths, int)
    return decode_stage(model, spec, source, plan.set_uri, plan.digest, depths)


def _model(spec: Spec, root: str) -> RQVAE:
    return prepare(load_tokenizer(storage.join(root, spec.tokenize.tokenizer)), spec.tokenize.threads)
