"""Starts the ranks of a training on this machine and keeps it going; and what each rank does from start to end."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch

from data_specs import digest, storage
from data_specs.code_version import REPOSITORY
from data_specs.manifest import read_manifest
from data_specs.root import REFUSED, read_spec, spec_of
from data_specs.scratch import scratch_folder
from data_specs.sections import ShardInput, Training
from data_specs.spec import Spec
from data_specs.text import say
from pipeline.stages import require_writable
from tokenize_jobs import stopping
from tokenize_jobs.checkpoint import finished_step
from tokenize_jobs.ranks import free_port, join_ranks
from tokenize_jobs.stopping import STOPPED, WRONG
from tokenize_jobs.trainer import Job

GRACE = 20.0  # seconds for the other ranks to end in once one has ended badly; they may hang in a collective
FREE_ON_RESUME = {
    *("micro_batch_size", "checkpoint_every", "checkpoint_minutes", "keep_last", "keep_every"),
    *("log_every", "validate_every"),
    *("max_restarts", "rank_timeout", "spike", "max_skips", "max_rollbacks", "extend_schedule"),
}


class TrainingFailed(ValueError, RuntimeError):
    """Training ended without weights; one line says why."""


# ---- all ranks -----------------------------------------------------------------------------------------------------
def launch(job: Job, module: str, root: str, ranks: int, arguments: Sequence[str] = ()) -> None:
    """Run a training on `ranks` processes of this machine until it is finished; a finished one returns at once.

    A run that dies is started again from its last checkpoint, `max_restarts` times, unless it was told to stop.

    Args:
        module: the entry of a rank, for instance `train.loop`.
        arguments: what it takes besides --root and --spec.

    Raises:
        TrainingFailed: it ended without weights.
        SystemExit: with 75 where it was told to stop, and has saved.
    """
    digest.require_claimable(job.folder, job.identity, job.remedy)
    if finished_step(job.folder) >= job.section.steps:
        return
    root, _, folder = job.folder.rpartition("/")
    require_writable(root, folder, job.command)
    with stopping.noted():
        for left in range(job.section.max_restarts, -1, -1):
            code, message = _run_once(job, [module, "--root", root, *arguments], ranks)
            if code == 0 or finished_step(job.folder) >= job.section.steps:
                return
            if code == WRONG:
                raise TrainingFailed(message or f"{job.folder}: training cannot go on; see the output above")
            if stopping.stop_requested() or code == STOPPED:
                raise SystemExit(STOPPED)
            say(f"{job.command}: ended with code {code}; {left} restarts left", sys.stderr)
    raise TrainingFailed(
        f"{job.folder}: training died {job.section.max_restarts + 1} times (last exit code {code}): see the output "
        "above, then run it again to resume from the last checkpoint"
    )


def _run_once(job: Job, command: list[str], ranks: int) -> tuple[int, str]:
    """Run all ranks once; return the exit code of the run and the message that it left, if any."""
    processes: list[subprocess.Popen[bytes]] = []
    with scratch_folder() as folder:
        errors = folder / "error"
        spec_file = folder / "spec.yaml"
        spec_file.write_text(job.spec.to_yaml(), encoding="utf-8")
        environment = _environment(ranks) | {"DND_ERROR_FILE": str(errors)}
        line = [sys.executable, "-P", "-m", *command, "--spec", str(spec_file)]
        try:
            for rank in range(ranks):
                own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(subprocess.Popen(line, env=own))
            code = _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return code, errors.read_text(encoding="utf-8") if errors.exists() else ""


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait until all ranks have ended, or GRACE seconds longer than the first that failed; return the run's code.

    Once this process is told to stop, the ranks are, again and again: one that is just being started may miss a signal.
    """
    deadline = float("inf")
    remind = 0.0
    codes = list[int]()
    while time.monotonic() < deadline:
        ended = [process.poll() for process in processes]
        codes = [code for code in ended if code]
        if None not in ended:
            break
        if codes and deadline == float("inf"):
            deadline = time.monotonic() + GRACE
        if stopping.stop_requested() and time.monotonic() > remind:
            remind = time.monotonic() + 1
            for process in processes:
                process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
    return WRONG if WRONG in codes else next((code for code in codes if code != STOPPED), codes[0] if codes else 0)


def _environment(ranks: int) -> dict[str, str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # fragments cost gigabytes else
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    return environment


# ---- one rank ------------------------------------------------------------------------------------------------------
def rank_arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of what every rank takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", required=True)
    parser.add_argument("--spec", help="a YAML file (default: what the training began with, else ROOT/spec.yaml)")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher gives it
    return parser


def run_rank(arguments: argparse.Namespace, stage: str, fit: Callable[[Spec, str], bool]) -> NoReturn:
    """Join the other ranks, train, and end this process with the exit code that says what became of it.

    Args:
        stage: the folder under the root, `tokenizer` or `transformer`.
        fit: trains a spec under a root; False where it was told to stop.
    """
    try:
        root = storage.absolute(arguments.root)
        spec = read_spec(arguments.spec, root) if arguments.spec else spec_of(root, stage)
        section = spec.tokenizer if stage == "tokenizer" else spec.train
        if stopping.stop_requested() and os.environ.get("WORLD_SIZE", "1") == "1":
            _end(STOPPED)
        join_ranks(timedelta(seconds=section.rank_timeout))
        _end(0 if fit(spec, root) else STOPPED)
    except REFUSED as error:
        _say(str(error))
        _end(WRONG)
    except BaseException:
        traceback.print_exc()
        _end(1)


def _say(message: str) -> None:
    """One line on the terminal, also written where `launch` looks for it."""
    say(f"error: {message}", sys.stderr)
    if path := os.environ.get("DND_ERROR_FILE"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(message)


def _end(code: int) -> NoReturn:
    """End at once: others may wait for this rank in a collective, and threads of gloo abort an orderly end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---- what is there already -----------------------------------------------------------------------------------------
def is_imported(folder: str, section: str) -> bool:
    """Return whether a training's folder holds a model from elsewhere (`dnd import`), which stays as it is; say so.

    Args:
        folder: ROOT/tokenizer or ROOT/transformer.
        section: of the spec, by which the model would be trained.
    """
    weights = storage.join(folder, f"{folder.rpartition('/')[2]}.safetensors")
    imported = storage.exists(weights) and digest.claimed(folder) is None
    if imported:
        say(f"{folder}: imported, not trained; to fine-tune it, name it as {section}.init_from under another root")
    return imported


# ---- what a training's result depends on ---------------------------------------------------------------------------
def spec_of_training(spec: Spec, key: str, free: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return what of a training's section of the spec its result depends on.

    Steps count only where the schedule of the rate depends on them; with `extend_schedule` those that the training
    began with stay in its identity.

    Args:
        key: the section, `tokenizer` or `train`.
        free: what of it may change on resume beside what is free in all trainings, as pydantic's `exclude`.
        folder: the training's.
    """
    section: Training = getattr(spec, key)
    tree = section.model_dump(mode="json", exclude={**dict.fromkeys(FREE_ON_RESUME, True), **free})
    if section.schedule == "constant":
        del tree["steps"]
    elif section.extend_schedule and (before := digest.claimed(folder)):
        begun = before.spec.get(key)
        tree["steps"] = begun.get("steps") if isinstance(begun, dict) else None
    return tree


def digests_of(root: str, name: str, sets: Sequence[ShardInput]) -> dict[str, str]:
    """Return the digest of each shard set of a mixture, as NAME.0, NAME.1, …; wherever they lie."""
    uris = [storage.join(root, entry.manifest) for entry in sets]
    manifests = [uri if uri.endswith(".json") else storage.join(uri, "manifest.json") for uri in uris]
    return {f"{name}.{number}": read_manifest(uri).digest for number, uri in enumerate(manifests)}


def digest_of_start(uri: str, folder: str) -> str:
    """Return the sha256 of the weights that a training starts from; once it has begun, they may be gone.

    Raises:
        ValueError: they are not there, and the training has not begun.
    """
    try:
        return digest.file_digest(uri)
    except FileNotFoundError:
        if (before := digest.claimed(folder)) and "init_from" in before.inputs:
            return before.inputs["init_from"]
        raise ValueError(f"{uri}: no weights to start from (init_from)") from None
