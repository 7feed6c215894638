"""Checkpoints: FOLDER/step_XXXXXXXX of plain safetensors, and FOLDER/latest, which only ever names a whole one.

Each rank writes the pieces of the float32 state that it answers for (weights, their moving average, the optimizer's
moments), keyed `kind/parameter/first element`. A rank that resumes reads the runs of elements that it needs, whoever
wrote them, so any number of ranks and any ZeRO stage reads what any other wrote: nothing is ever converted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_specs import storage
from data_specs.scratch import scratch_folder
from train import partition
from train.ema import EMA
from train.weights import write_safetensors

FORMAT = 1
STEP = re.compile(r"step_(\d{8,})")
WEIGHT, AVERAGE = "weight", "ema"  # kinds; the others are the optimizer's moments

State = dict[str, Any]
Kinds = Mapping[str, Sequence[Tensor | None]]  # tensors like the master weights by kind


# ---- writing -------------------------------------------------------------------------------------------------------
class Saver:
    """Writes checkpoints while training goes on: `start` copies the state, `busy` says whether it is on disk yet.

    When no rank is busy any more, all call `commit`, which makes the checkpoint the latest.
    """

    def __init__(self, engine: Any, ema: EMA, folder: str) -> None:
        self.engine, self.ema, self.folder = engine, ema, folder
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.state: State | None = None  # of the checkpoint under way
        self.thread, self.error = threading.Thread(), ""

    def start(self, state: State) -> None:
        """Copies this rank's pieces and begins to write them; `state` (with `step`) is what `resume` will return."""
        assert self.state is None, "a checkpoint is under way: commit it first"
        made = {"format_version": FORMAT, "optimizer_steps": partition.optimizer_steps(self.engine)}
        self.state = made | {"world": self.world, "zero_stage": self.engine.zero_optimization_stage()} | state
        uri = storage.join(self.folder, step_name(state["step"]), rank_name(self.rank, self.world))
        self.thread = threading.Thread(target=self._write, args=(uri, _snapshot(self.engine, self.ema)))
        self.thread.start()

    def _write(self, uri: str, tensors: dict[str, Tensor]) -> None:
        try:
            _write_file(uri, tensors)
        except (OSError, SafetensorError) as error:
            self.error = f"{uri}: the checkpoint could not be written ({error}): make room, then run again to resume"

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing. Raises ValueError saying why if it could not."""
        if self.error:
            raise ValueError(self.error)
        return self.thread.is_alive()

    def wait(self) -> None:
        """Waits until this rank's file is written; raises as `busy` does."""
        if self.state is not None:
            self.thread.join()
        assert not self.busy

    def commit(self, keep_last: int, keep_every: int | None) -> None:
        """Once all ranks have written: rank 0 describes the checkpoint, points `latest` at it, and removes old ones."""
        state, self.state = self.state, None
        if self.rank or state is None:
            return
        name = step_name(state["step"])
        uri = storage.join(self.folder, name)
        names = [rank_name(rank, self.world) for rank in range(self.world)]
        sizes = {n: facts.size if (facts := storage.stat(storage.join(uri, n))) else -1 for n in names}
        storage.write_text(storage.join(uri, "state.json"), json.dumps(state | {"files": sizes}, indent=1) + "\n")
        storage.write_text(storage.join(self.folder, "latest"), name + "\n")
        prune(self.folder, state["step"], keep_last, keep_every)


def step_name(step: int) -> str:
    """Name of a step's folder."""
    return f"step_{step:08d}"


def rank_name(rank: int, world: int) -> str:
    """Name of a rank's file."""
    return f"rank_{rank:05d}_of_{world:05d}.safetensors"


@torch.no_grad()
def _snapshot(engine: Any, ema: EMA) -> dict[str, Tensor]:
    """Copies on the CPU of the pieces that this rank answers for, by key."""
    kinds: Kinds = {WEIGHT: partition.master_weights(engine), AVERAGE: ema.averages, **partition.moments(engine)}
    return {
        f"{kind}/{piece.name}/{piece.start}": partition.view(tensor, piece).to("cpu", copy=True)
        for piece in partition.own_pieces(engine)
        for kind, tensors in kinds.items()
        if (tensor := tensors[piece.tensor]) is not None
    }


def _write_file(uri: str, tensors: dict[str, Tensor]) -> None:
    if storage.is_remote(uri):
        with scratch_folder() as folder:
            path = folder / "part"
            write_safetensors(path, tensors)
            storage.write_file(path, uri)
        return
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(Path(uri), tensors)
    for path in (Path(uri), Path(uri).parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# ---- which there are -----------------------------------------------------------------------------------------------
def latest(folder: str) -> str | None:
    """URI of the checkpoint that FOLDER/latest names, None where there is none."""
    uri = storage.join(folder, "latest")
    return storage.join(folder, storage.read_text(uri).strip()) if storage.exists(uri) else None


def read_state(uri: str) -> State:
    """What a checkpoint says of itself. Raises ValueError where it is not whole."""
    try:
        state: State = json.loads(storage.read_text(storage.join(uri, "state.json")))
        sizes = {name: storage.stat(storage.join(uri, name)) for name in state["files"]}
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        raise ValueError(f"{uri}: not a checkpoint of this version; name another in {uri}/../latest") from None
    damaged = [name for name, facts in sizes.items() if facts is None or facts.size != state["files"][name]]
    if damaged:
        raise ValueError(f"{uri}: {damaged[0]} is lost or cut off; name another checkpoint in {uri}/../latest")
    return state


def prune(folder: str, newest: int, keep_last: int, keep_every: int | None) -> None:
    """Removes checkpoints up to step `newest`, all but the last `keep_last` and those of every `keep_every`-th step."""
    steps = sorted(step for step in _steps(folder) if step <= newest)
    for step in steps[:-keep_last]:
        if not (keep_every and step % keep_every == 0):
            _remove(storage.join(folder, step_name(step)))


def _steps(folder: str) -> set[int]:
    if storage.is_remote(folder):
        parts: Iterable[str] = (f.uri.removeprefix(folder).strip("/").split("/")[0] for f in storage.list_files(folder))
    else:
        parts = (path.name for path in Path(folder).iterdir())
    return {int(match[1]) for part in parts if (match := STEP.fullmatch(part))}


def _remove(uri: str) -> None:
    storage.delete(storage.join(uri, "state.json"))  # first: what is left over is no checkpoint
    for file in list(storage.list_files(uri)):
        storage.delete(file.uri)
    if not storage.is_remote(uri):
        shutil.rmtree(uri, ignore_errors=True)


# ---- reading -------------------------------------------------------------------------------------------------------
class Stored:
    """A checkpoint's tensors, read by runs of elements; files are mapped, not loaded."""

    def __init__(self, uri: str, state: State) -> None:
        self.uri, self.state = uri, state
        self.runs: dict[tuple[str, str], list[tuple[int, Any]]] = {}  # (kind, name) -> (first element, slice)
        for file_name in state["files"]:
            file = safe_open(storage.local_copy(storage.join(uri, file_name)), "pt").__enter__()
            for key in file.keys():  # noqa: SIM118
                kind, name, start = key.split("/")
                self.runs.setdefault((kind, name), []).append((int(start), file.get_slice(key)))
        for runs in self.runs.values():
            runs.sort(key=lambda run: run[0])

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Elements start … start + count of a flattened parameter, float32 [count].

        Raises ValueError where the checkpoint lacks some of them.
        """
        parts = list(self._parts(self.runs.get((kind, name), []), start, count))
        if sum(len(part) for part in parts) != count:
            raise ValueError(f"{self.uri}: lacks elements {start} … {start + count - 1} of {kind} {name}")
        return torch.cat(parts)

    def _parts(self, runs: list[tuple[int, Any]], start: int, count: int) -> Iterator[Tensor]:
        place = start
        for first, stored in runs[max(bisect_right(runs, start, key=lambda run: run[0]) - 1, 0) :]:
            stop = min(first + stored.get_shape()[0], start + count)
            if first <= place < stop:
                yield stored[place - first : stop - first]
                place = stop


def resume(engine: Any, ema: EMA, folder: str) -> State | None:
    """Loads the checkpoint that `latest` names and returns its state, None where there is none; all ranks call it.

    Raises ValueError for one that is not whole or was made for another model.
    """
    uri = latest(folder)
    if uri is None:
        return None
    state = read_state(uri)
    load(engine, ema, Stored(uri, state))
    return state


@torch.no_grad()
def load(engine: Any, ema: EMA, stored: Stored) -> None:
    """Fills this rank's weights, averages and moments from a checkpoint, whatever ranks and stage wrote it."""
    masters, pieces = partition.master_weights(engine), partition.pieces(engine)
    moments: dict[str, list[Tensor | None]] = {kind: [None] * len(masters) for kind in partition.MOMENTS}
    for kind, tensors in moments.items():
        for piece in pieces:
            if (kind, piece.name) in stored.runs and tensors[piece.tensor] is None:
                tensors[piece.tensor] = torch.zeros_like(masters[piece.tensor])
    kinds: Kinds = {WEIGHT: masters, AVERAGE: ema.averages, **moments}
    for kind, filled in kinds.items():
        for piece in pieces:
            if (tensor := filled[piece.tensor]) is not None:
                partition.view(tensor, piece).copy_(stored.read(kind, piece.name, piece.start, piece.length))
    partition.set_moments(engine, moments, stored.state["optimizer_steps"])
    partition.refresh_model(engine)


def merged(stored: Stored, kind: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Whole float32 tensors of a kind by parameter name; `shapes` are the model's."""
    return {
        name: stored.read(kind, name, 0, int(torch.Size(shape).numel())).view(shape) for name, shape in shapes.items()
    }
