"""Checkpoints: FOLDER/step_XXXXXXXX of plain safetensors, proved before they count and proved again when read.

Every rank writes one file of flat tensors, keyed `kind/name/first element`, and reads it back; only when all have done
so does rank 0 write state.json, which holds the size and sha256 of each file and makes the folder a checkpoint. Any
number of ranks reads what any other number wrote.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_specs import storage
from data_specs.digest import file_digest
from data_specs.records import CheckpointFile, CheckpointState, Finished, RecordError
from data_specs.root import name_under
from data_specs.scratch import scratch_folder
from data_specs.text import say
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.tensors import NotFiniteError, find_not_finite, write_safetensors

STEP = re.compile(r"step_(\d{8,})")
STATE = "state.json"
LATEST = "latest"
DONE = "done"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)  # no restart mends them
THREADS = 8  # files that a process reads and hashes at a time


# ---- writing -------------------------------------------------------------------------------------------------------
class Failure(NamedTuple):
    """What a rank's writing ended with, as all ranks are sent it: not every exception can be pickled."""

    kind: str
    errno: int | None
    message: str

    def error(self, what: str) -> Exception:
        """Return what to raise, on every rank."""
        if self.kind == NotFiniteError.__name__:
            return NotFiniteError(self.message)
        if self.errno in NO_ROOM:
            return ValueError(f"{what} ({self.message}): make room, then run again to resume from the last one")
        return RuntimeError(f"{what} ({self.kind}: {self.message})")


class CheckpointWriter:
    """Writes checkpoints while training goes on: `start` takes the tensors, `busy` says whether they are on disk yet.

    Then all ranks call `commit`, which makes the checkpoint count and removes older ones.
    """

    def __init__(self, folder: str, ranks: Ranks, keep_last: int, keep_every: int | None) -> None:
        self.folder = folder
        self.ranks = ranks
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.pool = ThreadPoolExecutor(1)
        self.under_way: tuple[CheckpointState, Future[CheckpointFile | Failure]] | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self.under_way is not None and not self.under_way[1].done()

    def start(self, state: CheckpointState, tensors: dict[str, Tensor]) -> None:
        """Begin to write this rank's tensors; `state` names no files yet."""
        assert self.under_way is None, "a checkpoint is under way: commit it first"
        uri = storage.join(self.folder, step_name(state.step))
        if self.ranks.rank == 0:
            storage.delete(storage.join(uri, STATE))  # what is written anew does not count until it is whole
        file_uri = storage.join(uri, rank_name(self.ranks.rank, self.ranks.world))
        self.under_way = state, self.pool.submit(_write, file_uri, tensors)

    def commit(self) -> None:
        """Make the checkpoint under way count, if there is one, once all ranks have written it; all call it.

        Raises:
            NotFiniteError: a number in it is not finite.
            ValueError: it could not be written, and no restart mends that.
            RuntimeError: it could not be written.
        """
        if self.under_way is None:
            return
        state, written = self.under_way
        self.under_way = None
        uri = storage.join(self.folder, step_name(state.step))
        files: dict[str, CheckpointFile] = {}
        for rank, result in enumerate(self.ranks.gather(written.result())):
            if isinstance(result, Failure):
                raise result.error(f"{uri}: rank {rank} could not write the checkpoint")
            files[rank_name(rank, self.ranks.world)] = result
        if self.ranks.rank == 0:
            self._publish(uri, state, files)

    def _publish(self, uri: str, state: CheckpointState, files: dict[str, CheckpointFile]) -> None:
        """Write state.json and `latest`, then remove what is not needed any more."""
        whole = CheckpointState.model_validate(dict(state) | {"files": files})
        for file in list(storage.list_files(uri)):
            if file.uri.rpartition("/")[2] not in files:  # left by a run on another number of ranks
                storage.delete(file.uri)
        storage.write(storage.join(uri, STATE), whole.to_json())
        storage.write_text(storage.join(self.folder, LATEST), step_name(state.step) + "\n")
        prune(self.folder, state.step, self.keep_last, self.keep_every)


def _write(uri: str, tensors: dict[str, Tensor]) -> CheckpointFile | Failure:
    """Write a rank's file and read it back; whatever goes wrong is raised by `commit`, on every rank."""
    try:
        written = _write_file(uri, tensors)
        if _digest_on_disk(uri) != written.sha256:
            raise OSError(f"{uri}: what was read back is not what was written ({written.bytes} bytes)")
        return written
    except BaseException as error:
        return Failure(type(error).__name__, getattr(error, "errno", None), str(error))


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


def _digest_on_disk(uri: str) -> str:
    """SHA-256 of a file as the disk has it: the kernel's own copy is given back first."""
    if not storage.is_remote(uri):
        descriptor = os.open(uri, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return file_digest(uri)


def step_name(step: int) -> str:
    """Return the name of a step's folder."""
    return f"step_{step:08d}"


def rank_name(rank: int, world: int) -> str:
    """Return the name of a rank's file."""
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
    """Return the steps of which there is a folder, in order, whole or not."""
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
    """Return what a checkpoint says of itself.

    Raises:
        RecordError or FileNotFoundError: it is none.
    """
    state_uri = storage.join(uri, STATE)
    return CheckpointState.parse(storage.read_bytes(state_uri), state_uri)


def newest_state(folder: str) -> CheckpointState | None:
    """Return the state of the checkpoint that would be tried first; None where none has one that can be read."""
    for uri in _candidates(folder):
        with suppress(FileNotFoundError, RecordError):
            return read_state(uri)
    return None


def find_whole(folder: str, ranks: Ranks) -> tuple[str, CheckpointState] | None:
    """Return address and state of the checkpoint to go on from, None where there is none yet; all ranks call it.

    The one that `latest` names is tried first, then the others from the newest on. The ranks share the reading.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    faults = list[str]()
    for uri in ranks.gather(_candidates(folder) if ranks.rank == 0 else [])[0]:
        state, mine = _examine(uri, ranks.rank, ranks.world)
        found = [line for lines in ranks.gather(mine) for line in lines]
        if state and not found:
            if ranks.rank == 0 and faults:
                say(f"warning: goes on from {uri}: {'; '.join(faults)}", sys.stderr)
            return uri, state
        faults.append(found[0])
    if faults:
        raise ValueError(
            f"{folder}: no checkpoint is whole ({'; '.join(faults)}): restore one, or remove {folder} to start anew"
        )
    return None


def _candidates(folder: str) -> list[str]:
    """Addresses of checkpoints in the order in which they are tried."""
    steps = list_steps(folder)
    latest = _read_latest(folder)
    named = STEP.fullmatch(latest or "")
    with_state = [n for n in steps if storage.exists(storage.join(folder, step_name(n), STATE))]
    tried = dict.fromkeys([*([int(named[1])] if named else []), *reversed(with_state)])
    if not tried and steps and latest is not None:  # one was whole once
        tried = dict.fromkeys(reversed(steps))
    return [storage.join(folder, step_name(step)) for step in tried]


def _read_latest(folder: str) -> str | None:
    """Return the name that `latest` holds, of whatever; None where there is no such file."""
    uri = storage.join(folder, LATEST)
    return storage.read_bytes(uri).decode(errors="replace").strip() if storage.exists(uri) else None


def _examine(uri: str, rank: int = 0, world: int = 1) -> tuple[CheckpointState | None, list[str]]:
    """Read a checkpoint's state and every byte of this rank's share; return a line for each thing that is wrong."""
    try:
        state = read_state(uri)
    except FileNotFoundError:
        return None, [f"{uri}: its {STATE} is lost"]
    except RecordError as error:
        return None, [str(error)]

    def fault(name: str) -> str:
        return _fault_of(storage.join(uri, name), state.files[name])

    with ThreadPoolExecutor(THREADS) as pool:
        return state, [line for line in pool.map(fault, sorted(state.files)[rank::world]) if line]


def _fault_of(uri: str, wanted: CheckpointFile) -> str:
    """Return what is wrong with a file of a checkpoint, "" where it is what state.json says."""
    try:
        if (there := storage.stat(uri)) and there.size != wanted.bytes:
            return f"{uri}: {there.size} bytes, state.json says {wanted.bytes}"
        found = file_digest(storage.local_copy(uri))
    except OSError as error:
        return f"{uri}: {error.strerror or error}"
    return "" if found == wanted.sha256 else f"{uri}: its bytes are not those that were written"


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
                    stored = file.get_slice(key)
                    if len(stored.get_shape()) != 1:
                        raise ValueError(f"{key} is not flat")
                    self.runs.setdefault((kind, name), []).append((int(start), stored))
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{uri}/{file_name}: not a file of a checkpoint ({error})") from None
        for runs in self.runs.values():
            runs.sort(key=lambda run: run[0])

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Return elements start … start + count of a flattened tensor, [count].

        Raises:
            ValueError: the checkpoint lacks some of them.
        """
        parts = list[Tensor]()
        position = start
        for first, stored in self.runs.get((kind, name), []):
            stop = min(first + stored.get_shape()[0], start + count)
            if first <= position < stop:
                parts.append(stored[position - first : stop - first])
                position = stop
        if position != start + count:
            raise ValueError(f"{self.uri}: lacks elements {start} … {start + count - 1} of {kind} {name}")
        return torch.cat(parts)

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
    try:
        return Finished.parse(storage.read_bytes(uri), uri, "remove it; the next run of the training writes it anew")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


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
        _, faults = _examine(uri)
        yield from faults
    latest = _read_latest(folder)
    if latest is not None and not STEP.fullmatch(latest):
        yield f"{storage.join(folder, LATEST)}: names no checkpoint; the next one that is made writes it anew"
    try:
        done = read_finished(folder)
    except RecordError as error:
        yield str(error)
        done = None
    for name in sorted({*(done.files if done else ()), *_weight_files(folder)}):
        yield from _verify_weights(storage.join(folder, name), done.files.get(name) if done else None)


def _weight_files(folder: str) -> Iterator[str]:
    names = (name_under(folder, file.uri) for file in storage.list_files(folder))
    return (name for name in names if name.endswith(".safetensors") and "/" not in name)


def _verify_weights(uri: str, wanted: CheckpointFile | None) -> Iterator[str]:
    """Yield what is wrong with exported weights: their digest, where it is known, or non-finite numbers."""
    try:
        path = storage.local_copy(uri)
        if wanted and file_digest(path) != wanted.sha256:
            yield f"{uri}: its bytes are not those that training wrote"
        if names := list(find_not_finite(path)):
            more = f" and {len(names) - 1} more tensors hold" if names[1:] else " holds"
            yield f"{uri}: {names[0]}{more} numbers that are not finite"
    except (OSError, ValueError) as error:
        yield f"{uri}: {getattr(error, 'strerror', None) or error}"
