"""Runs the `dnd` command in processes forked from one that has loaded everything: a second each, where ten were.

Where a command trains, its ranks are forked as well, unless it has joined a Ray, whose threads a fork would lose.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

PROCESSES = multiprocessing.get_context("forkserver")
COMPILER = ["torch._dynamo", "torch._inductor.compile_fx"]  # an optimizer loads the one, DeepSpeed's Muon the other
OURS = ["pipeline.render", "train.task", "train.job", "infra.demo", "infra.cli", "command", "prose"]
PROCESSES.set_forkserver_preload([*COMPILER, *OURS])
FORK = multiprocessing.get_context("fork")


def start(process: BaseProcess) -> None:
    """Start a process of the fork server; the first one starts that as well, which finds what it loads in tests/."""
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), paths)))
    process.start()
    if paths is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = paths


class Command(NamedTuple):
    """A command on its way, the leader of a process group of its own."""

    words: list[str]
    process: BaseProcess
    folder: tempfile.TemporaryDirectory[str]

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self.process.pid
        return self.process.pid

    def poll(self) -> int | None:
        """Its exit code, None as long as it runs."""
        return self.process.exitcode

    def end(self, timeout: float = 800) -> subprocess.CompletedProcess[str]:
        """Waits for its end and returns what it said."""
        self.process.join(timeout)
        said = [Path(self.folder.name, name).read_text() for name in ("stdout", "stderr")]
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.words, timeout, *said)
        return subprocess.CompletedProcess(self.words, self.process.exitcode, *said)


def start_dnd(
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    imports: Sequence[str] = (),
) -> Command:
    """Starts the command.

    Args:
        environment: by default this process's, with the session's Ray where a test has asked for `ray_session`.
        imports: modules of PYTHONPATH that are imported before the command runs.
    """
    words, folder = ["dnd", *map(str, arguments)], tempfile.TemporaryDirectory()
    said = [Path(folder.name, name) for name in ("stdout", "stderr")]
    for path in said:
        path.touch()
    given = dict(os.environ | session_ray() if environment is None else environment)
    process = PROCESSES.Process(target=_run, args=(words, given, cwd or Path.cwd(), imports, *said))
    start(process)
    return Command(words, process, folder)


def dnd(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command and returns what it said; options as those of `start_dnd`."""
    return start_dnd(*arguments, **options).end()


def session_ray() -> dict[str, str]:
    """The variable by which commands join the session's Ray, if there is one."""
    ray = sys.modules.get("ray")
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address} if ray and ray.is_initialized() else {}


class ForkedRank:
    """What `launch` needs of the process of a rank, with what this process has imported."""

    def __init__(self, line: list[str], env: dict[str, str]) -> None:
        self.process = FORK.Process(target=_rank, args=(line[line.index("-m") + 1 :], env))
        self.process.start()

    def poll(self) -> int | None:
        """Its exit code, None as long as it runs."""
        return self.process.exitcode

    def wait(self) -> int | None:
        """Its exit code, once it has ended."""
        self.process.join()
        return self.process.exitcode

    def kill(self) -> None:
        """Ends it."""
        self.process.kill()

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)


def _start_rank(line: list[str], env: dict[str, str]) -> ForkedRank | subprocess.Popen[bytes]:
    ray = sys.modules.get("ray")
    return subprocess.Popen(line, env=env) if ray and ray.is_initialized() else ForkedRank(line, env)


def _rank(line: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = line
    importlib.import_module(line[0]).main()


def _run(
    command: list[str], environment: dict[str, str], folder: Path, imports: Sequence[str], stdout: Path, stderr: Path
) -> None:
    from tokenize_jobs import launch

    launch.subprocess = SimpleNamespace(Popen=_start_rank)  # type: ignore[assignment]
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = command
    if imports:
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
        del sys.modules["infra.cli"]  # it has a command for each stage that is registered before it
    for name in (*imports, "infra.cli"):
        importlib.import_module(name)
    try:
        sys.modules["infra.cli"].main()
    finally:
        atexit._run_exitfuncs()  # a forked process passes over them; Ray's are there
        sys.stdout.flush()
        sys.stderr.flush()
