"""Runs the `dnd` command in processes forked from one that has loaded everything: a second each, where ten were."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
COMPILER = ["torch._dynamo", "torch._inductor.compile_fx"]  # an optimizer loads the one, DeepSpeed's Muon the other
OURS = ["train.task", "train.job", "infra.demo", "infra.cli", "command", "prose"]
PROCESSES.set_forkserver_preload([*COMPILER, *OURS])


def start(process: BaseProcess) -> None:
    """Start a process of the fork server; the first one starts that as well, which finds what it loads in tests/."""
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), paths)))
    process.start()
    if paths is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = paths


def dnd(*arguments: object, timeout: int = 800, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command and returns what it said; on the session's Ray where a test has asked for `ray_session`."""
    command = ["dnd", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "stdout"), Path(folder, "stderr")
        process = PROCESSES.Process(target=_run, args=(command, os.environ | session_ray(), cwd or Path.cwd(), *said))
        start(process)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout, *(path.read_bytes() for path in said))
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in said))


def session_ray() -> dict[str, str]:
    """The variable by which commands join the session's Ray, if there is one."""
    ray = sys.modules.get("ray")
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address} if ray and ray.is_initialized() else {}


def _run(command: list[str], environment: dict[str, str], folder: Path, stdout: Path, stderr: Path) -> None:
    from infra.cli import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = command
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # a forked process passes over them; Ray's are there
        sys.stdout.flush()
        sys.stderr.flush()
