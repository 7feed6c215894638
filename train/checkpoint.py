"""Checkpoints: FOLDER/step_XXXXXXXX, whole or absent, and FOLDER/latest, written last, naming the one to resume from.

A checkpoint holds DeepSpeed's files, each rank's part of the moving average, and state.json. On S3 it is written to a
folder of this machine first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_specs import storage
from train.ema import EMA

STEP = re.compile(r"step_(\d{8,})")
SAME_RUN = ("world", "zero_stage", "dtype")


def save(engine: Any, ema: EMA, folder: str, step: int, state: dict[str, Any]) -> None:
    """Writes a step's checkpoint and points `latest` at it; all ranks call it. `state` is what `resume` returns."""
    name = f"step_{step:08d}"
    local = _local_folder(folder)
    unfinished = local / f".{name}.part"
    if _first_of_node():
        shutil.rmtree(unfinished, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(local), tag=unfinished.name, save_latest=False)
    torch.save(ema.averages, unfinished / f"ema_{dist.get_rank():05d}.pt")
    if dist.get_rank() == 0:
        (unfinished / "state.json").write_text(json.dumps({"step": step, **_layout(engine), **state}, indent=1) + "\n")
    dist.barrier()
    _place(unfinished, folder, name)
    dist.barrier()
    if dist.get_rank() == 0:
        storage.write_text(storage.join(folder, "latest"), name)


def _place(unfinished: Path, folder: str, name: str) -> None:
    if storage.is_remote(folder):
        if _first_of_node():
            for path in sorted(p for p in unfinished.rglob("*") if p.is_file()):
                storage.write_file(path, storage.join(folder, name, str(path.relative_to(unfinished))))
            shutil.rmtree(unfinished)
    elif dist.get_rank() == 0:
        for path in unfinished.rglob("*"):
            _to_disk(path)
        shutil.rmtree(Path(folder, name), ignore_errors=True)  # one that `latest` never named
        os.replace(unfinished, Path(folder, name))
        _to_disk(Path(folder))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resume(engine: Any, ema: EMA, folder: str) -> dict[str, Any] | None:
    """Loads the checkpoint that `latest` names and returns its state, None where there is none; all ranks call it.

    Raises ValueError for another number of ranks, ZeRO stage or dtype than it was written with.
    """
    latest = storage.join(folder, "latest")
    if not storage.exists(latest):
        return None
    name = storage.read_text(latest).strip()
    uri = storage.join(folder, name)
    state: dict[str, Any] = json.loads(storage.read_text(storage.join(uri, "state.json")))
    _require_same_layout(uri, state, _layout(engine))
    local = storage.local_folder(uri)
    engine.load_checkpoint(str(local.parent), tag=local.name, load_lr_scheduler_states=False)
    ema.load(torch.load(local / f"ema_{dist.get_rank():05d}.pt", map_location="cpu", weights_only=True))
    return state


def _layout(engine: Any) -> dict[str, Any]:
    dtype = "bfloat16" if engine.bfloat16_enabled() else "float32"
    return {"world": dist.get_world_size(), "zero_stage": engine.zero_optimization_stage(), "dtype": dtype}


def _require_same_layout(uri: str, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [f"{key} was {stored[key]}, is now {wanted[key]}" for key in SAME_RUN if stored[key] != wanted[key]]
    if changed:
        raise ValueError(
            f"{uri}: {'; '.join(changed)}: resume with the same number of ranks, the same ZeRO stage and dtype"
        )


def prune(folder: str, keep_last: int, keep_every: int | None) -> None:
    """Removes checkpoints, all but the last `keep_last` and those of every `keep_every`-th step; one rank calls it."""
    steps = sorted(_steps(folder))
    for step in steps[:-keep_last]:
        if not (keep_every and step % keep_every == 0):
            _remove(storage.join(folder, f"step_{step:08d}"))


def _steps(folder: str) -> set[int]:
    if storage.is_remote(folder):
        parts = (file.uri.removeprefix(folder).strip("/").split("/")[0] for file in storage.list_files(folder))
    else:
        parts = (path.name for path in Path(folder).iterdir())
    return {int(match[1]) for part in parts if (match := STEP.fullmatch(part))}


def _remove(uri: str) -> None:
    if storage.is_remote(uri):
        for file in list(storage.list_files(uri)):
            storage.delete(file.uri)
    else:
        shutil.rmtree(uri, ignore_errors=True)


def _local_folder(folder: str) -> Path:
    """Where checkpoints are written: the folder itself, or this user's folder on this machine that stands for it."""
    if not storage.is_remote(folder):
        return Path(folder)
    key = hashlib.sha256(folder.encode()).hexdigest()[:16]
    local = Path(tempfile.gettempdir(), f"dnd-checkpoints-{os.getuid()}", key)
    local.mkdir(parents=True, exist_ok=True, mode=0o700)
    return local


def _first_of_node() -> bool:
    return int(os.environ.get("LOCAL_RANK", "0")) == 0
