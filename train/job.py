"""Starts training of the transformer and keeps it going: `dnd train SPEC --root ROOT --ranks N`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from data_specs import digest, storage
from data_specs.scratch import scratch_folder
from data_specs.spec import Spec
from train.identity import STOPPED, WRONG, finished_step, identity

REPOSITORY = Path(__file__).resolve().parent.parent


class TrainingFailed(ValueError, RuntimeError):
    """Training ended without weights; one line says why."""


def train(spec: Spec, root: str, *, ranks: int = 1, deepspeed_config: str | None = None) -> None:
    """Trains to spec.train.steps on `ranks` processes of this machine; a finished run returns at once.

    A run that dies is started again from its last checkpoint, train.max_restarts times. Raises TrainingFailed, and
    SystemExit(75) where the run was told to stop and has saved. `deepspeed_config` is a JSON file that adds what the
    spec does not own.
    """
    root = storage.absolute(root)
    digest.claim(storage.join(root, "transformer"), identity(spec, root))
    if finished_step(root) >= spec.train.steps:
        return
    for left in range(spec.train.max_restarts, -1, -1):
        code, message = _run_once(spec, root, ranks, deepspeed_config)
        if code == 0 or finished_step(root) >= spec.train.steps:
            return
        if code == STOPPED:
            raise SystemExit(STOPPED)
        if code == WRONG:
            raise TrainingFailed(message or f"{root}/transformer: training cannot go on; see the output above")
        print(f"train: ended with code {code}; {left} restarts left", file=sys.stderr, flush=True)
    raise TrainingFailed(
        f"{root}/transformer: training died {spec.train.max_restarts + 1} times (last exit code {code}): see the "
        "output above, then run it again to resume from the last checkpoint"
    )


def _run_once(spec: Spec, root: str, ranks: int, deepspeed_config: str | None) -> tuple[int, str]:
    """Runs the launcher once; its exit code and the message the run left, if any."""
    with scratch_folder() as folder:
        errors, spec_file = folder / "error", folder / "spec.yaml"
        spec_file.write_text(spec.to_yaml(), encoding="utf-8")
        arguments = [*command(root, ranks, deepspeed_config), "--spec", str(spec_file)]
        environment = _environment(ranks) | {"DND_ERROR_FILE": str(errors)}
        process = subprocess.Popen(arguments, env=environment)
        try:
            with _signals_to_ranks(process):
                code = process.wait()
        finally:
            _end(process)
        return code, errors.read_text(encoding="utf-8") if errors.exists() else ""


def command(root: str, ranks: int, deepspeed_config: str | None = None) -> list[str]:
    """The command that trains: DeepSpeed's launcher, or the loop itself where there is one rank."""
    arguments = ["--root", root, *(["--deepspeed_config", deepspeed_config] if deepspeed_config else [])]
    if ranks == 1:
        return [sys.executable, "-m", "train.loop", *arguments]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    return [*launcher, "--master_port", str(_free_port()), "--module", "train.loop", *arguments]


def _environment(ranks: int) -> dict[str, str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _signals_to_ranks(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGUSR1 go to the ranks, which save and stop; the launcher would kill them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pass_on = lambda *_: [rank.send_signal(signal.SIGUSR1) for rank in _ranks(process)]  # noqa: E731
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that train: those below ours that run train.loop and start nothing of the kind."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return [p for p in family if "-m train.loop" in " ".join(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leaves nothing behind where this process is interrupted."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.terminate()
        for member in psutil.wait_procs(family, timeout=30)[1]:
            member.kill()
