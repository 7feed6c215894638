"""Checkpoints: FOLDER/step_XXXXXXXX of plain safetensors, proved before they count and proved again when read.

Every rank writes one file of flat tensors, keyed `kind/name/first element`, and reads it back; only when all have done
so does rank 0 write state.json, which holds the size and sha256 of each file and makes the folder a checkpoint. Any
number of ranks reads what any other number wrote.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_specs import storage
from data_specs.records import CheckpointFile, CheckpointState, Finished, RecordError
from data_specs.scratch import scratch_folder
from data_specs.text import say
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.tensors import NotFiniteError, find_not_finite, write_safetensors

STEP = re.compile(r"step_(\d{8,})")
STATE, LATEST, DONE = "state.json", "latest", "done"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)  # no restart mends them
THREADS = 8  # files that a process reads and hashes at a time


# ---- writing -------------------------------------------------------------------------------------------------------
class CheckpointWriter:
    """Writes checkpoints while training goes on: `start` takes the tensors, `busy` says whether they are on disk yet.

    When no rank is busy any more, all call `commit`, which makes the checkpoint count and removes older ones.
    """

    def __init__(self, folder: str, ranks: Ranks, keep_last: int, keep_every: int | None) -> None:
        self.folder, self.ranks, self.keep_last, self.keep_every = folder, ranks, keep_last, keep_every
        self.state: CheckpointState | None = None  # of the checkpoint under way
        self.thread = threading.Thread()
        self.written: CheckpointFile | None = None
        self.error: tuple[str, int | None, str] | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self.thread.is_alive()

    def start(self, state: CheckpointState, tensors: dict[str, Tensor]) -> None:
        """Begin to write this rank's tensors; `state` names no files yet."""
        assert self.state is None, "a checkpoint is under way: commit it first"
        self.state = state
        self.written = None
        self.error = None
        uri = storage.join(self.folder, step_name(state.step))
        if self.ranks.rank == 0:
            storage.delete(storage.join(uri, STATE))  # what is written anew does not count until it is whole
        file_uri = storage.join(uri, rank_name(self.ranks.rank, self.ranks.world))
        self.thread = threading.Thread(target=self._write, args=(file_uri, tensors), daemon=True)
        self.thread.start()

    def _write(self, uri: str, tensors: dict[str, Tensor]) -> None:
        try:
            written = _write_file(uri, tensors)
            if (found := _describe(uri)) != written:
                raise OSError(f"{uri}: what was read back is not what was written ({found.bytes} bytes)")
            self.written = written
        except BaseException as error:  # raised by `commit`, on every rank
            self.error = (type(error).__name__, getattr(error, "errno", None), str(error))

    def wait(self) -> None:
        """Wait until this rank has written."""
        if self.state is not None:
            self.thread.join()

    def commit(self) -> None:
        """Make the checkpoint under way count, if there is one; all ranks call it, when none is busy.

        Raises:
            NotFiniteError: a number in it is not finite.
            ValueError: it could not be written, and no restart mends that.
            RuntimeError: it could not be written.
        """
        state = self.state
        self.state = None
        if state is None:
            return
        results = self.ranks.gather((self.written, self.error))
        uri = storage.join(self.folder, step_name(state.step))
        for rank, (_, error) in enumerate(results):
            if error:
                _raise(f"{uri}: rank {rank} could not write the checkpoint", error)
        if self.ranks.rank == 0:
            names = (rank_name(rank, self.ranks.world) for rank in range(self.ranks.world))
            self._publish(uri, state, dict(zip(names, (file for file, _ in results), strict=True)))

    def _publish(self, uri: str, state: CheckpointState, files: dict[str, CheckpointFile | None]) -> None:
        """Write state.json and `latest`, then remove what is not needed any more."""
        whole = CheckpointState.model_validate(dict(state) | {"files": files})
        for file in list(storage.list_files(uri)):
            if file.uri.rpartition("/")[2] not in files:  # left by a run on another number of ranks
                storage.delete(file.uri)
        storage.write(storage.join(uri, STATE), whole.to_json())
        storage.write_text(storage.join(self.folder, LATEST), step_name(state.step) + "\n")
        prune(self.folder, state.step, self.keep_last, self.keep_every)


def _raise(what: str, error: tuple[str, int | None, str]) -> None:
    """Raise what a rank's writing thread ended with, told as (type, errno, message)."""
    kind, number, message = error
    if kind == NotFiniteError.__name__:
        raise NotFiniteError(message)
    if number in NO_ROOM:
        raise ValueError(f"{what} ({message}): make room, then run again to resume from the last one")
    raise RuntimeError(f"{what} ({kind}: {message})")


def _write_file(uri: str, tensors: dict[str, Tensor]) -> CheckpointFile:
    if storage.is_remote(uri):
        with scratch_folder() as folder:
            written = write_safetensors(folder / "part", tensors)
            storage.write(uri, folder / "part")
            return written
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    written = write_safetensors(Path(uri), tensors)
    directory = os.open(Path(uri).parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    return written


def _describe(uri: str) -> CheckpointFile:
    """Size and sha256 of a file as the disk has it: the kernel's own copy is given back first."""
    if not storage.is_remote(uri):
        descriptor = os.open(uri, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    with storage.open_stream(uri) as file:
        return describe_stream(file)


def describe_stream(file: Any) -> CheckpointFile:
    """Size and sha256 of what is left of a stream."""
    found = hashlib.sha256()
    size = 0
    while chunk := file.read(2**22):
        found.update(chunk)
        size += len(chunk)
    return CheckpointFile(bytes=size, sha256=found.hexdigest())


def step_name(step: int) -> str:
    """Name of a step's folder."""
    return f"step_{step:08d}"


def rank_name(rank: int, world: int) -> str:
    """Name of a rank's file."""
    return f"rank_{rank:05d}_of_{world:05d}.safetensors"


def prune(folder: str, newest: int, keep_last: int, keep_every: int | None) -> None:
    """Remove checkpoints up to step `newest`, all but the last `keep_last` and those of every `keep_every`-th step.

    Folders that are no checkpoint (a write that was cut off) neither stay nor count.
    """
    steps = [step for step in list_steps(folder) if step <= newest]
    whole = [step for step in steps if storage.exists(storage.join(folder, step_name(step), STATE))]
    kept = {newest, *whole[-keep_last:], *(step for step in whole if keep_every and step % keep_every == 0)}
    for step in set(steps) - kept:
        _remove(storage.join(folder, step_name(step)))


def list_steps(folder: str) -> list[int]:
    """Steps of which there is a folder, in order, whole or not."""
    names = (uri.rstrip("/").rpartition("/")[2] for uri in storage.list_folders(folder))
    return sorted(int(match[1]) for name in names if (match := STEP.fullmatch(name)))


def _remove(uri: str) -> None:
    storage.delete(storage.join(uri, STATE))  # first: what is left over is no checkpoint
    for file in list(storage.list_files(uri)):
        storage.delete(file.uri)
    if not storage.is_remote(uri):
        shutil.rmtree(uri, ignore_errors=True)


# ---- finding one that is whole -------------------------------------------------------------------------------------
def read_state(uri: str) -> CheckpointState:
    """Return what a checkpoint says of itself. Raises RecordError or FileNotFoundError where it is none."""
    state_uri = storage.join(uri, STATE)
    return CheckpointState.parse(storage.read_bytes(state_uri), state_uri)


def newest_state(folder: str) -> CheckpointState | None:
    """Return the state of the checkpoint that would be tried first; None where none has one that can be read."""
    for uri in _candidates(folder):
        with suppress(FileNotFoundError, RecordError):
            return read_state(uri)
    return None


def find_faults(uri: str, state: CheckpointState, names: Sequence[str]) -> list[str]:
    """Return one line for each file of `names` that is not what state.json says; reads every byte."""

    def fault(name: str) -> str:
        path = storage.join(uri, name)
        wanted = state.files[name]
        try:
            if (there := storage.stat(path)) and there.size != wanted.bytes:
                return f"{path}: {there.size} bytes, state.json says {wanted.bytes}"
            with storage.local_copy(path).open("rb") as file:
                found = describe_stream(file)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        return "" if found == wanted else f"{path}: its bytes are not those that were written"

    with ThreadPoolExecutor(THREADS) as pool:
        return [line for line in pool.map(fault, names) if line]


def find_whole(folder: str, ranks: Ranks) -> tuple[str, CheckpointState] | None:
    """Return address and state of the checkpoint to go on from, None where there is none yet; all ranks call it.

    The one that `latest` names is tried first, then the others from the newest on. The ranks share the reading.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    faults = list[str]()
    for uri in ranks.gather(_candidates(folder) if ranks.rank == 0 else [])[0]:
        found = _examine(uri, ranks)
        if isinstance(found, CheckpointState):
            if ranks.rank == 0 and faults:
                say(f"warning: goes on from {uri}: {'; '.join(faults)}", sys.stderr)
            return uri, found
        faults.append(found)
    if faults:
        raise ValueError(
            f"{folder}: no checkpoint is whole ({'; '.join(faults)}): restore one, or remove {folder} to start anew"
        )
    return None


def _candidates(folder: str) -> list[str]:
    """Addresses of checkpoints in the order in which they are tried."""
    steps = list_steps(folder)
    latest = storage.join(folder, LATEST)
    text = storage.read_bytes(latest).decode(errors="replace") if storage.exists(latest) else ""
    named = STEP.fullmatch(text.strip())
    with_state = [n for n in steps if storage.exists(storage.join(folder, step_name(n), STATE))]
    tried = dict.fromkeys([*([int(named[1])] if named else []), *reversed(with_state)])
    if not tried and steps and storage.exists(latest):  # one was whole once
        tried = dict.fromkeys(reversed(steps))
    return [storage.join(folder, step_name(step)) for step in tried]


def _examine(uri: str, ranks: Ranks) -> CheckpointState | str:
    """A checkpoint's state where it is whole, else what is wrong with it, the same on all ranks."""
    faults = list[str]()
    state = None
    try:
        state = read_state(uri)
        faults = find_faults(uri, state, sorted(state.files)[ranks.rank :: ranks.world])
    except FileNotFoundError:
        faults = [f"{uri}: its {STATE} is lost"]
    except RecordError as error:
        faults = [str(error)]
    told = [line for lines in ranks.gather(faults) for line in lines]
    return told[0] if told or state is None else state


# ---- reading -------------------------------------------------------------------------------------------------------
class StoredTensors:
    """A checkpoint's tensors, read by runs of elements; files are mapped, not loaded."""

    def __init__(self, uri: str, names: Iterable[str]) -> None:
        self.uri = uri
        self.runs: dict[tuple[str, str], list[tuple[int, Any]]] = {}  # (kind, name) -> (first element, slice)
        for file_name in names:
            try:
                file = safe_open(storage.local_copy(storage.join(uri, file_name)), "pt").__enter__()
                for key in file.keys():  # noqa: SIM118
                    kind, name, start = key.split("/")
                    self.runs.setdefault((kind, name), []).append((int(start), file.get_slice(key)))
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{uri}/{file_name}: not a file of a checkpoint ({error})") from None
        for runs in self.runs.values():
            runs.sort(key=lambda run: run[0])

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Return elements start … start + count of a flattened tensor, [count].

        Raises:
            ValueError: the checkpoint lacks some of them.
        """
        parts = list(self._parts(self.runs.get((kind, name), []), start, count))
        if sum(len(part) for part in parts) != count:
            raise ValueError(f"{self.uri}: lacks elements {start} … {start + count - 1} of {kind} {name}")
        return torch.cat(parts)

    def _parts(self, runs: list[tuple[int, Any]], start: int, count: int) -> Iterator[Tensor]:
        position = start
        for first, stored in runs[max(bisect_right(runs, start, key=lambda run: run[0]) - 1, 0) :]:
            stop = min(first + stored.get_shape()[0], start + count)
            if first <= position < stop:
                yield stored[position - first : stop - first]
                position = stop

    def flat(self, kind: str, name: str) -> Tensor:
        """Return all elements of a tensor."""
        return torch.cat([stored[:] for _, stored in self.runs[kind, name]])

    def tensor(self, kind: str, name: str, shape: Sequence[int]) -> Tensor:
        """Return a whole tensor; raises as `read` does."""
        return self.read(kind, name, 0, torch.Size(shape).numel()).view(tuple(shape))

    def whole(self, kind: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Return the whole tensors of a kind by name; raises as `read` does."""
        return {name: self.tensor(kind, name, shape) for name, shape in shapes.items()}


# ---- what is finished, and whether all of it is whole --------------------------------------------------------------
def read_finished(folder: str) -> Finished | None:
    """Return what a finished training says of its result; None where there is none."""
    uri = storage.join(folder, DONE)
    if not storage.exists(uri):
        return None
    remedy = "remove it; the next run of the training writes it anew"
    return Finished.parse(storage.read_bytes(uri), uri, remedy)


def finished_step(folder: str) -> int:
    """Return the step of a finished training's weights, 0 where there are none."""
    done = read_finished(folder)
    return done.step if done else 0


def find_trainings(root: str) -> list[str]:
    """Return the folders of a root that hold something trained or imported."""
    folders = (storage.join(root, stage) for stage in ("tokenizer", "transformer"))
    return [folder for folder in folders if next(iter(storage.list_files(folder)), None)]


def verify_training(folder: str) -> Iterator[str]:
    """Read every byte of a training's checkpoints and exported weights; one line for each that is not what it was.

    Args:
        folder: ROOT/tokenizer or ROOT/transformer, trained or imported.
    """
    for uri in _candidates(folder):
        try:
            state = read_state(uri)
            yield from find_faults(uri, state, sorted(state.files))
        except FileNotFoundError:
            yield f"{uri}: its {STATE} is lost"
        except RecordError as error:
            yield str(error)
    try:
        done = read_finished(folder)
    except RecordError as error:
        yield str(error)
        done = None
    for name in sorted({*(done.files if done else ()), *_weight_files(folder)}):
        yield from _verify_weights(storage.join(folder, name), done.files.get(name) if done else None)


def _weight_files(folder: str) -> Iterator[str]:
    names = (file.uri.removeprefix(folder.rstrip("/") + "/") for file in storage.list_files(folder))
    return (name for name in names if name.endswith(".safetensors") and "/" not in name)


def _verify_weights(uri: str, wanted: CheckpointFile | None) -> Iterator[str]:
    """What is wrong with exported weights: their digest, where it is known, or numbers that are not finite."""
    try:
        path = storage.local_copy(uri)
        with path.open("rb") as file:
            if wanted and describe_stream(file) != wanted:
                yield f"{uri}: its bytes are not those that training wrote"
        yield from (f"{uri}: {name} holds numbers that are not finite" for name in find_not_finite(path))
    except (OSError, ValueError) as error:
        yield f"{uri}: {getattr(error, 'strerror', None) or error}"
