"""`dnd train`, codes to a transformer, and `dnd sample`, ranges of image indices to code shards and their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from pydantic import AliasPath, BaseModel, Field, PositiveInt, ValidationError

from data_specs import storage
from data_specs.records import Identity, Manifest, RangeUnit
from data_specs.shape import CodeShape
from data_specs.spec import Spec
from data_specs.units import read_plan
from pipeline.stages import Option, Output, Stage, UnitStage, Work, planned, register
from pipeline.workers import Share, Workers
from tokenize_jobs.job import DECODE, device_of, on_worker, weights_digest

OWN_PRESET = "use the preset that it was trained or imported by"


class Train(Stage):
    """The transformer learns on the code shards."""

    name = "train"
    title = "Trains the transformer with DeepSpeed (ROOT/transformer); resumes from its last checkpoint."
    reads = ("tokenize",)
    makes = "transformer"
    sections = keys = ("transformer", "train")
    trained_by = "train"
    options = (Option("deepspeed-config", "JSON that adds to DeepSpeed's what the spec does not own"),)

    def run(
        self, spec: Spec, root: str, workers: Workers, deepspeed_config: str | None = None, **_: Any
    ) -> Iterator[str]:
        from train.job import train

        train(spec, root, ranks=workers.num_workers or 1, deepspeed_config=deepspeed_config)
        yield f"transformer: {storage.join(root, self.makes)}"


class DrawSamples(UnitStage):
    """Draws spec.sample.num images' codes, and decodes them; image i draws from (seed, i)."""

    name = "sample"
    title = "Draws images from the trained model: codes, pictures, samples.npz, grid.png (ROOT/samples/NAME)."
    reads = ("train", "train-tokenizer", "decode")
    makes = "samples/NAME"
    holds = "codes"
    progress_unit = "images"
    sections = ("transformer",)
    keys = ("sample", "seed")
    keeps_spec = True
    remade = "folder"
    options = (Option("num", "images (default: the spec's)", None, int, "sample.num"),)

    def make(self, spec: Spec, root: str, workers: Workers, **options: Any) -> dict[str, Manifest]:
        """Make the sets, as for all stages.

        A worker holds the whole model: one a GPU, or one a group of spec.sample.threads cores.
        """
        use = workers if workers.gpus else workers._replace(cpus=float(spec.sample.threads))
        return super().make(spec, root, use, **options)

    def outputs(self, spec: Spec, root: str, workers: Workers, **_: Any) -> Iterator[Output]:
        refuse_other_transformer(spec, storage.join(root, "transformer"))
        size = spec.sample.images_per_unit
        spec, products = settle(spec, root, workers)
        starts = range(0, spec.sample.num, size)
        units = (RangeUnit(unit=n, first=s, count=min(size, spec.sample.num - s)) for n, s in enumerate(starts))
        other = f"draw under another name (--set sample.name=…; these are {spec.sample.name}), "
        identity = _identity(spec, root, workers, products)
        plan = planned(storage.join(root, "samples", spec.sample.name, "codes"), identity, units, other)
        yield Output(plan, spec, partial(_setup, spec, root, identity.versions["device"], products))

    def leased(self, spec: Spec, root: str, **_: Any) -> str:
        return f"samples/{spec.sample.name}"

    def run(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[str]:
        refuse_other_tokenizer(spec, storage.join(root, spec.tokenize.tokenizer))  # before hours of work
        yield from about_average(spec, root)
        yield from super().run(spec, root, workers, **options)

    def finish(self, spec: Spec, root: str, workers: Workers, **options: Any) -> Iterator[str]:
        out = f"samples/{spec.sample.name}"
        workers = workers._replace(share=Share())
        yield from DECODE.run(spec, root, workers, codes=f"{out}/codes", out=out)


class Begun(BaseModel, frozen=True):
    """What samples begun under a name have settled; their plan's identity holds it."""

    dtype: Literal["float32", "bfloat16", "int8"] = Field(validation_alias=AliasPath("sample", "dtype"))
    batch_size: PositiveInt = Field(validation_alias=AliasPath("sample", "batch_size"))
    products: dict[str, str]


def settle(spec: Spec, root: str, workers: Workers) -> tuple[Spec, dict[str, str]]:
    """Settle batch, dtype and how CPUs multiply: as in samples begun under the root, or as suits the workers.

    Raises:
        ValueError: int8 on GPUs, or samples whose plan is of something else.
    """
    if workers.gpus and spec.sample.dtype == "int8":
        raise ValueError("sample.dtype int8 is for CPUs: on a GPU leave it out, or use bfloat16")
    begun = _begun(spec, root)
    dtype: str = spec.sample.dtype
    if dtype == "auto":
        suiting = "bfloat16" if workers.gpus else "float32"
        dtype = begun.dtype if begun else suiting
    spec = spec.changed("sample", dtype=dtype)
    if spec.sample.batch_size is None:
        spec = spec.changed("sample", batch_size=begun.batch_size if begun else _fitting_batch(spec, workers))
    return spec, begun.products if begun else _fastest_products(spec, root, workers)


def _begun(spec: Spec, root: str) -> Begun | None:
    name = f"samples/{spec.sample.name}/codes"
    plan = read_plan(storage.join(root, name))
    try:
        return Begun.model_validate(plan.identity.spec, strict=True) if plan else None
    except ValidationError:
        raise ValueError(f"{name}: its plan is not that of samples; draw under another name") from None


def _fitting_batch(spec: Spec, workers: Workers) -> int:
    """Return 32, or on GPUs what fits into the part of one that a worker has."""
    if not workers.gpus:
        return 32

    def fitting() -> int:
        from tokenize_jobs.device import memory_of, pick_device
        from train.memory import fitting_sample_batch

        return fitting_sample_batch(spec, min(workers.gpus, 1.0) * memory_of(pick_device()))

    return on_worker(workers, fitting)


def _fastest_products(spec: Spec, root: str, workers: Workers) -> dict[str, str]:
    """Return how CPU workers multiply what they decode at once; it decides bytes."""
    if workers.gpus or spec.sample.dtype == "int8":
        return {}
    import torch

    from train.linear import choose_products
    from train.weights import read_config

    threads = torch.get_num_threads()
    config = read_config(storage.join(root, "transformer"))
    torch.set_num_threads(spec.sample.threads)
    try:
        return choose_products(config, getattr(torch, spec.sample.dtype), _rows(spec))
    finally:
        torch.set_num_threads(threads)


def _rows(spec: Spec) -> int:
    """Count the sequences that a worker decodes at once."""
    assert spec.sample.batch_size, "settled before"
    return spec.sample.num_rows(spec.sample.batch_size)


def _identity(spec: Spec, root: str, workers: Workers, products: dict[str, str]) -> Identity:
    import torch

    from pipeline.follow import content_digest
    from train.draw import open_given

    name = "ema.safetensors" if spec.sample.ema else "transformer.safetensors"
    inputs = {"transformer": weights_digest(storage.join(root, "transformer", name), "transformer", "train")}
    if given := open_given(spec, root):
        inputs["given"] = content_digest(given.manifest)
    free: Any = {"name": True, "rounding": True, "given": {"codes"}}  # names and paths, and what decoding needs
    return Identity(
        stage="sample",
        spec={"sample": spec.sample.model_dump(mode="json", exclude=free), "products": dict[str, Any](products)},
        inputs=inputs,
        seed=spec.seed,
        versions={"torch": torch.__version__, "device": device_of(workers)},
    )


def about_average(spec: Spec, root: str) -> Iterator[str]:
    """Yield a line where samples are drawn from a moving average that validated worse than the weights."""
    from tokenize_jobs.checkpoint import read_finished

    done = read_finished(storage.join(root, "transformer"))
    if spec.sample.ema and done and done.ema is not None and done.ema > done.weights:
        yield (
            f"warning: the moving average validated worse than the weights ({done.ema:.3f} against {done.weights:.3f} "
            "bits a code): --set sample.ema=false draws from the weights, or train longer, or with a lower train.ema"
        )


def refuse_other_transformer(spec: Spec, folder: str) -> None:
    """Refuse a folder's transformer with ValueError where it is not the spec's."""
    from train.weights import CONFIG, read_config

    uri = _described(folder, CONFIG)
    config = read_config(folder)
    spec.codes.refuse_other(CodeShape.of(config), uri, "the spec's", OWN_PRESET)
    if config.num_classes != spec.transformer.num_classes:
        number = spec.transformer.num_classes
        raise ValueError(f"{uri}: has {config.num_classes} classes, the spec {number}: {OWN_PRESET}")


def refuse_other_tokenizer(spec: Spec, folder: str) -> None:
    """Refuse a folder's tokenizer with ValueError where it is not the spec's, or its weights are lost or damaged."""
    from tokenize_jobs.weights import CONFIG, read_config

    uri = _described(folder, CONFIG)
    CodeShape.of(spec.shape).refuse_other(CodeShape.of(read_config(folder)), uri, "the spec's", OWN_PRESET)
    weights_digest(storage.join(folder, "tokenizer.safetensors"))


def _described(folder: str, name: str) -> str:
    """Return the address of a model's description.

    Raises:
        ValueError: there is none.
    """
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        model = name.removesuffix(".json")
        raise ValueError(f"{uri}: no {model}; train one or run `dnd import {model}` first")
    return uri


def _setup(spec: Spec, root: str, device: str, products: dict[str, str]) -> Work:
    """Load the transformer; a unit is a range of images."""
    import torch

    from tokenize_jobs.device import pick_device, require_device
    from train.draw import sample_range
    from train.linear import packed, quantize_int8
    from train.weights import load_transformer

    require_device(device)
    torch.set_num_threads(spec.sample.threads)
    uri = storage.join(root, "transformer")
    dtype = torch.float32 if spec.sample.dtype == "float32" else torch.bfloat16
    model = load_transformer(uri, ema=spec.sample.ema, device=pick_device(), dtype=dtype)
    model = quantize_int8(model) if spec.sample.dtype == "int8" else packed(model, _rows(spec), products)
    return lambda unit: sample_range(model, spec, unit.first, unit.count, root)


register(Train())
SAMPLE = register(DrawSamples())
