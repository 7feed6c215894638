"""Training of the transformer as a stage: what its result depends on, and how it is started (`dnd train`)."""

from __future__ import annotations

from typing import Any

from data_specs import storage
from data_specs.records import Identity
from data_specs.spec import Spec
from tokenize_jobs import trainer
from tokenize_jobs.launch import digest_of_start, digests_of, is_imported, launch, spec_of_training
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.trainer import Job, Task
from train.weights import EMA_WEIGHTS

FREE: dict[str, Any] = {  # on resume; of inputs their content counts, not where they lie
    **dict.fromkeys(("val_codes", "init_from", "zero_stage", "offload_optimizer", "validation_images"), True),
    **dict.fromkeys(("sample_every", "activation_checkpointing", "compile"), True),
    "codes": {"__all__": {"manifest"}},
}


def train(spec: Spec, root: str, *, ranks: int = 1, deepspeed_config: str | None = None) -> None:
    """Train to spec.train.steps on `ranks` processes of this machine; a finished run returns at once.

    An imported transformer stays as it is.

    Args:
        deepspeed_config: a JSON file that adds what the spec does not own.

    Raises:
        TrainingFailed: training ended without weights; one line says why.
        SystemExit: with 75 where the run was told to stop, and has saved.
    """
    root = storage.absolute(root)
    if is_imported(storage.join(root, "transformer"), "train"):
        return
    arguments = ["--deepspeed_config", deepspeed_config] if deepspeed_config else []
    launch(job_of(spec, root), "train.loop", root, ranks, arguments)


def fit(spec: Spec, root: str, deepspeed_config: str | None = None) -> bool:
    """Train on this rank, which has joined the others, and write ROOT/transformer; see `trainer.fit`."""
    if is_imported(storage.join(root, "transformer"), "train"):
        return True
    from train.engine import read_user_config  # DeepSpeed takes seconds to import
    from train.task import TransformerTask

    def build(ranks: Ranks) -> Task:
        return TransformerTask(spec, root, ranks, read_user_config(deepspeed_config))

    return trainer.fit(job_of(spec, root), build)


def job_of(spec: Spec, root: str) -> Job:
    """Return what is to be trained, and where."""
    folder = storage.join(root, "transformer")
    keys = ("shape", "seed", "transformer", "train")
    return Job("train", folder, spec.train, spec, keys, identity(spec, root))


def identity(spec: Spec, root: str) -> Identity:
    """Return what the trained transformer depends on."""
    section = spec.train
    folder = storage.join(root, "transformer")
    inputs = digests_of(root, "codes", section.codes)
    if section.init_from:
        inputs["init_from"] = digest_of_start(storage.join(root, section.init_from, EMA_WEIGHTS), folder)
    tree: dict[str, Any] = {
        "shape": spec.shape.model_dump(mode="json") | {"flatten": spec.tokenize.flatten},
        "transformer": spec.transformer.model_dump(mode="json"),
        "train": spec_of_training(spec, "train", FREE, folder),
    }
    return Identity(stage="transformer", spec=tree, inputs=inputs, seed=spec.seed)
