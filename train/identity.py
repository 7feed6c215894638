"""What a trained transformer depends on, when it is finished, and how its processes end: known without DeepSpeed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from data_specs import storage
from data_specs.manifest import read_manifest
from data_specs.records import Identity
from data_specs.spec import Spec

STOPPED, WRONG = 75, 2  # exit codes
FREE_ON_RESUME = {
    *("micro_batch_size", "zero_stage", "offload_optimizer", "checkpoint_every", "keep_last", "keep_every"),
    *(
        "validate_every",
        "validation_images",
        "sample_every",
        "log_every",
        "max_restarts",
        "activation_checkpointing",
        "compile",
    ),
    *("rank_timeout", "spike", "max_skips", "max_rollbacks"),
}


def identity(spec: Spec, root: str) -> Identity:
    """What the trained transformer depends on. Steps count only where the schedule of the rate depends on them."""
    free = FREE_ON_RESUME | ({"steps"} if spec.train.schedule == "constant" else set())
    manifests = [entry.manifest for entry in spec.train.codes] + [spec.train.val_codes]
    inputs = {
        f"codes.{number}": read_manifest(_manifest_uri(storage.join(root, uri))).digest
        for number, uri in enumerate(manifests)
    }
    if spec.train.init_from:
        inputs["init_from"] = _sha256(storage.join(root, spec.train.init_from))
    part: dict[str, Any] = {
        "shape": spec.shape.model_dump(mode="json"),
        "transformer": spec.transformer.model_dump(mode="json"),
        "train": spec.train.model_dump(mode="json", exclude=free),
    }
    return Identity(stage="transformer", spec=part, inputs=inputs, seed=spec.seed)


def _manifest_uri(uri: str) -> str:
    return uri if uri.endswith(".json") else storage.join(uri, "manifest.json")


def _sha256(folder: str) -> str:
    return hashlib.sha256(storage.read_bytes(storage.join(folder, "transformer.safetensors"))).hexdigest()


def finished_step(root: str) -> int:
    """The step of a finished run's weights, 0 where there are none."""
    uri = storage.join(root, "transformer", "done")
    return int(json.loads(storage.read_text(uri))["step"]) if storage.exists(uri) else 0
