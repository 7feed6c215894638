"""Training of the tokenizer as a stage: what its result depends on, and how it is started (`dnd train-tokenizer`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from data_specs import storage
from data_specs.records import Identity
from data_specs.spec import Spec
from data_specs.text import say
from tokenize_jobs.launch import digest_of_start, digests_of, is_imported, launch, spec_of_training
from tokenize_jobs.losses import losses_in_words
from tokenize_jobs.networks import lpips_of
from tokenize_jobs.task import TokenizerTask
from tokenize_jobs.tensors import digest_of_weights
from tokenize_jobs.trainer import Job
from tokenize_jobs.trainer import fit as run
from tokenize_jobs.weights import WEIGHTS

FREE: dict[str, Any] = {  # on resume; of inputs their content counts, not where they lie
    **dict.fromkeys(("dtype", "compile", "init_from", "lpips_weights"), True),
    "images": {"__all__": {"manifest"}},
}


def train_tokenizer(spec: Spec, root: str, *, ranks: int = 1) -> None:
    """Train to spec.tokenizer.steps on `ranks` processes of this machine; a finished run returns at once.

    An imported tokenizer stays as it is.

    Raises:
        TrainingFailed: training ended without a tokenizer; one line says why.
        SystemExit: with 75 where the run was told to stop, and has saved.
    """
    root = storage.absolute(root)
    if is_imported(storage.join(root, "tokenizer"), "tokenizer"):
        return
    job = job_of(spec, root)
    say(f"train-tokenizer: losses {losses_in_words(spec.tokenizer)}")
    launch(job, "tokenize_jobs.fit", root, ranks)


def fit(spec: Spec, root: str) -> bool:
    """Train on this rank, and write ROOT/tokenizer; see `trainer.fit`."""
    root = storage.absolute(root)
    if is_imported(storage.join(root, "tokenizer"), "tokenizer"):
        return True
    return run(job_of(spec, root), partial(TokenizerTask, spec, root))


def job_of(spec: Spec, root: str) -> Job:
    """Return what is to be trained, and where."""
    folder = storage.join(root, "tokenizer")
    keys = ("shape", "seed", "tokenizer")
    return Job("train-tokenizer", folder, spec.tokenizer, spec, keys, identity(spec, root))


def identity(spec: Spec, root: str) -> Identity:
    """Return what the trained tokenizer depends on.

    Raises:
        ValueError, FileNotFoundError: an input is missing; nothing is written.
    """
    section = spec.tokenizer
    folder = storage.join(root, "tokenizer")
    inputs = digests_of(root, "images", section.images)
    if section.init_from:
        inputs["init_from"] = digest_of_start(storage.join(root, section.init_from, WEIGHTS), folder)
    if lpips := lpips_of(spec, root):
        inputs["lpips_weights"] = digest_of_weights(lpips)
    tree: dict[str, Any] = {
        "shape": spec.shape.model_dump(mode="json"),
        "tokenizer": spec_of_training(spec, "tokenizer", FREE, folder) | {"lpips": section.lpips_weights is not None},
    }
    return Identity(stage="tokenizer", spec=tree, inputs=inputs, seed=spec.seed)
