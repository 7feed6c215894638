"""`dnd train-tokenizer`, `tokenize` (image shards -> code shards) and `decode` (the way back, also from the first codes
of each position)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from data_specs import storage
from data_specs.digest import file_digest
from data_specs.records import Identity
from data_specs.root import name_under
from data_specs.spec import Spec
from data_specs.units import read_plan
from pipeline.stages import Option, Output, Stage, UnitStage, Work, leased_folder, register
from pipeline.workers import Workers

if TYPE_CHECKING:
    from tokenize_jobs.rqvae import RQVAE

T = TypeVar("T")


class TrainTokenizer(Stage):
    """The RQ-VAE learns on the image shards."""

    name = "train-tokenizer"
    title = "Trains the RQ-VAE on the image shards (ROOT/tokenizer); resumes from its last checkpoint."
    reads = ("render",)
    makes = "tokenizer"
    sections = ("tokenizer",)
    keys = ("tokenizer", "shape", "seed")
    trained_by = "tokenizer"

    def run(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[str]:
        from tokenize_jobs.training import train_tokenizer

        train_tokenizer(spec, root, ranks=workers.num_workers or 1)
        yield f"tokenizer: {storage.join(root, self.makes)}"


class Tokenize(UnitStage):
    """Image shards to code shards, one to one."""

    name = "tokenize"
    title = "Image shards -> code shards (ROOT/codes/{train,val}), one to one."
    reads = ("render", "train-tokenizer")
    makes = "codes/{train,val}"
    holds = "codes"
    owned_keys = ("shape", "tokenize")
    keys = ("tokenize",)
    keeps_spec = True

    def outputs(self, spec: Spec, root: str, workers: Workers, **_: Any) -> Iterator[Output]:
        from data_specs.manifest import read_manifest
        from data_specs.table import check_expression
        from pipeline.follow import folder_of, plan_by_shards

        if spec.tokenize.where is not None:
            check_expression(spec.tokenize.where)
        sources = {split: folder_of(storage.join(root, images)) for split, images in spec.tokenize.images.items()}
        spec = settle_batch(spec, root, workers)
        section = {"tokenize": spec.tokenize.model_dump(mode="json", exclude={"images", "tokenizer"})}
        identity = _identity(spec, root, "tokenize", section, workers)
        for source in sources.values():  # all of them are whole before the first is begun
            read_manifest(storage.join(source, "manifest.json"))
        folder = storage.join(root, "codes")
        plans = {s: plan_by_shards(storage.join(folder, s), identity, source, s) for s, source in sources.items()}
        for split, source in sources.items():
            yield Output(
                plans[split], spec, partial(_setup_encoding, spec, root, source, split, identity.versions["device"])
            )


class Decode(UnitStage):
    """Code shards to pictures."""

    name = "decode"
    title = "Code shards -> pictures: an image shard set, PNGs, samples.npz and grid.png."
    reads = ("tokenize",)
    makes = "OUT/images"
    in_run = False
    keys = ("sample.rounding", "tokenize.compute_batch", "tokenize.threads")
    remade = "folder"
    options = (
        Option("codes", "code shard set, relative to the root", "codes/val"),
        Option("out", "folder for the pictures, relative to the root", "reconstructions/val"),
    )

    def outputs(
        self,
        spec: Spec,
        root: str,
        workers: Workers,
        codes: str = "codes/val",
        out: str = "reconstructions/val",
        depths: int | None = None,
        **_: Any,
    ) -> Iterator[Output]:
        """Plan the images of a code set; `depths`: from the first so many codes of each position (default: all)."""
        from pipeline.follow import folder_of, plan_by_shards

        spec = settle_batch(spec, root, workers)
        source = folder_of(storage.join(root, codes))
        section: dict[str, Any] = {"rounding": spec.sample.rounding, "compute_batch": spec.tokenize.compute_batch}
        section |= {"threads": spec.tokenize.threads} | ({"depths": depths} if depths else {})
        identity = _identity(spec, root, "decode", section, workers)
        plan = plan_by_shards(storage.join(storage.below(root, out), "images"), identity, source, "val")
        yield Output(plan, spec, partial(_setup_decoding, spec, root, source, depths, identity.versions["device"]))

    def leased(self, spec: Spec, root: str, out: str = "reconstructions/val", **_: Any) -> str:
        return leased_folder(name_under(root, storage.join(storage.below(root, out), "images")))

    def finish(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[str]:
        """Write the pictures, samples.npz and grid.png beside the images."""
        from data_specs import open_shards
        from tokenize_jobs.decode import write_pictures

        out = storage.below(root, options.get("out", "reconstructions/val"))
        images = open_shards(storage.join(out, "images"))
        if not len(images):
            raise ValueError(f"{images.uri}: the shard set is empty: there are no pictures to write")
        if not storage.exists(storage.join(out, "grid.png")):
            write_pictures(images, out)
        yield f"pictures: {storage.join(out, 'grid.png')}"


def reconstruct(spec: Spec, root: str, split: str, workers: Workers) -> list[str]:
    """Decode ROOT/codes/SPLIT from 1 … d codes a position; return the image shard sets, relative to the root.

    The last is the full depth, ROOT/reconstructions/SPLIT/images.
    """
    depth = spec.shape.depth
    folder = f"reconstructions/{split}"
    outs = [f"{folder}/depth{depths}" for depths in range(1, depth)] + [folder]
    for depths, out in enumerate(outs, 1):
        of_depth = depths if depths < depth else None
        DECODE.make(spec, root, workers, codes=f"codes/{split}", out=out, depths=of_depth)
    return [f"{out}/images" for out in outs]


def settle_batch(spec: Spec, root: str, workers: Workers) -> Spec:
    """Return the spec with a compute batch: its own, that of codes under the root, or what fits on a worker."""
    if spec.tokenize.compute_batch:
        return spec
    plans = (read_plan(storage.join(root, f"codes/{split}")) for split in spec.tokenize.images)
    made = (_batch_of(plan.identity) for plan in plans if plan)
    batch = next((batch for batch in made if batch), None) or _probe(spec, root, workers)
    return spec.changed("tokenize", compute_batch=batch)


def _batch_of(identity: Identity) -> int | None:
    section = identity.spec.get("tokenize")
    batch = section.get("compute_batch") if isinstance(section, dict) else None
    return batch if isinstance(batch, int) else None


def _probe(spec: Spec, root: str, workers: Workers) -> int:
    """Return the batch that fits, tried out on a worker where the workers have GPUs.

    Each worker may have only a part of a GPU.
    """

    def fitting() -> int:
        import torch

        from tokenize_jobs.encode import fitting_batch

        return fitting_batch(_model(spec, root), getattr(torch, spec.tokenize.dtype), min(workers.gpus or 1.0, 1.0))

    return on_worker(workers, fitting)


def on_worker(workers: Workers, call: Callable[[], T]) -> T:
    """Return what a call gives: on a worker where the workers have GPUs, else here."""
    if workers.here or not workers.gpus:
        return call()
    import ray

    from pipeline.runner import connect

    connect(workers)
    asked: Any = ray.remote(call)
    answer: T = ray.get(asked.options(num_cpus=workers.cpus, num_gpus=workers.gpus).remote())
    return answer


def device_of(workers: Workers) -> str:
    """Return what the workers compute on, as digests name it; of a pool of several kinds the first to answer."""

    def name() -> str:
        from tokenize_jobs.device import device_name, pick_device

        return device_name(pick_device())

    return on_worker(workers, name) if workers.gpus else "cpu"


def _identity(spec: Spec, root: str, stage: str, section: dict[str, Any], workers: Workers) -> Identity:
    """Return what a set made by the tokenizer depends on, besides the shards that it reads.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    import PIL
    import torch

    from tokenize_jobs.weights import read_config

    folder = storage.join(root, spec.tokenize.tokenizer)
    weights = weights_digest(storage.join(folder, "tokenizer.safetensors"))
    read_config(folder)
    return Identity(
        stage=stage,
        spec={"shape": spec.shape.model_dump(mode="json"), **section},
        inputs={"tokenizer": weights},
        versions={"torch": torch.__version__, "pillow": PIL.__version__, "device": device_of(workers)},
    )


def weights_digest(uri: str, model: str = "tokenizer", command: str = "train-tokenizer") -> str:
    """Return the SHA-256 of a model's weights.

    Raises:
        ValueError: there are none, or others than its training wrote.
    """
    from tokenize_jobs.checkpoint import DONE, read_finished

    try:
        found = file_digest(uri)
    except FileNotFoundError:
        raise ValueError(f"{uri}: no trained {model}; run `dnd {command}` or `dnd import {model}` first") from None
    folder, _, name = uri.rpartition("/")
    done = read_finished(folder)
    if done and name in done.files and done.files[name].sha256 != found:
        remedy = f"restore it, or remove {folder}/{DONE} and run `dnd {command}` to write it anew"
        raise ValueError(f"{uri}: its bytes are not those that training wrote: {remedy}")
    return found


def _setup_encoding(spec: Spec, root: str, images_uri: str, split: str, device: str) -> Work:
    from pipeline.follow import by_shards
    from tokenize_jobs.device import require_device
    from tokenize_jobs.encode import encode_shard

    require_device(device)
    return by_shards(images_uri, partial(encode_shard, _model(spec, root), spec, split))


def _setup_decoding(spec: Spec, root: str, codes_uri: str, depths: int | None, device: str) -> Work:
    from pipeline.follow import by_shards
    from tokenize_jobs.decode import decode_shard
    from tokenize_jobs.device import require_device

    require_device(device)
    return by_shards(codes_uri, partial(decode_shard, _model(spec, root), spec, depths))


def _model(spec: Spec, root: str) -> RQVAE:
    from tokenize_jobs.encode import prepare
    from tokenize_jobs.weights import load_tokenizer

    return prepare(load_tokenizer(storage.join(root, spec.tokenize.tokenizer)), spec.tokenize.threads)


register(TrainTokenizer())
TOKENIZE = register(Tokenize())
DECODE = register(Decode())
