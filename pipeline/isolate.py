"""Killable children: documents are rendered in a process of its own, with limits on CPU time, memory and wall clock.

A renderer can crash, hang or eat memory; no exception handler catches that. The child is started as
`python -m pipeline.isolate FD FUNCTION`; it serves many documents and is replaced when it dies. The next documents wait
in its pipe while it works, so that isolation costs little.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

from data_specs.spec import Limits

AHEAD = 8  # calls sent before the first is answered
WALL_FACTOR = 10  # the wall-clock backstop, in units of the CPU limit
PR_SET_PDEATHSIG = 1


class Answer(NamedTuple):
    """What a child said: its value, or why there is none. `environmental` reasons depend on the machine."""

    value: Any
    reason: str | None = None
    environmental: bool = False


class Child:
    """One child process that calls `function` ("module:name") with `fixed` and the arguments it is sent."""

    def __init__(self, function: str, limits: Limits, *fixed: Any) -> None:
        self.function, self.limits, self.fixed = function, limits, fixed
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, *arguments: Any, factor: float = 1.0) -> Answer:
        """One call under the limits times `factor`; after a death the next call starts a fresh child."""
        return next(self.map([arguments], factor))

    def map(self, calls: Iterable[tuple[Any, ...]], factor: float = 1.0) -> Iterator[Answer]:
        """The answers of many calls in order, up to AHEAD of them waiting in the child's pipe.

        A call that ends the child is answered by the reason; those that waited behind it go to a fresh child.
        """
        waiting, calls = deque[tuple[Any, ...]](), iter(calls)
        while True:
            while len(waiting) < AHEAD and (call := next(calls, None)) is not None:
                waiting.append(call)
                if self._lives():
                    self._send(call, factor)
            if not waiting:
                return
            if not self._lives():
                self._start()
                for call in waiting:
                    self._send(call, factor)
            answer = self._receive(self.limits.cpu_seconds * factor)
            waiting.popleft()
            yield answer

    def _lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _send(self, call: tuple[Any, ...], factor: float) -> None:
        """Hands a call to the thread that writes: a full pipe must not keep us from watching the clock."""
        self.outbox.put((call, self.limits.cpu_seconds * factor, int(self.limits.memory_bytes * factor)))

    def _receive(self, cpu: float) -> Answer:
        try:
            if self.pipe.poll(cpu * WALL_FACTOR):
                return Answer(*self.pipe.recv())
        except (EOFError, ConnectionError):
            return self._death(cpu)
        self.close()
        return Answer(None, f"took longer than {cpu * WALL_FACTOR:g} s", True)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pipeline.isolate", str(theirs.fileno()), self.function]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self.pipe, self.outbox = Connection(ours.detach()), SimpleQueue[Any]()
        self.outbox.put(self.fixed)
        threading.Thread(target=_write, args=(self.pipe, self.outbox), daemon=True).start()

    def _death(self, cpu: float) -> Answer:
        assert self.process is not None
        code = self.process.wait()
        self._hang_up()
        if -code == signal.SIGXCPU:
            return Answer(None, f"used more than {cpu:g} s of CPU", True)
        if -code == signal.SIGKILL:
            return Answer(None, "the renderer was killed (memory?)", True)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Answer(None, f"the renderer died: {name}", True)

    def close(self) -> None:
        """Ends the child."""
        if self.process is not None and self._lives():
            self.process.kill()
            self.process.wait()
            self._hang_up()

    def _hang_up(self) -> None:
        self.outbox.put(None)
        self.pipe.close()


def _write(pipe: Connection, outbox: SimpleQueue[Any]) -> None:
    """The thread that writes to a child, until None comes or the child is gone."""
    with suppress(OSError, ValueError, TypeError):  # closed under our hands: whoever receives has seen why
        while (message := outbox.get()) is not None:
            pipe.send(message)


def _limit(cpu: float, memory: int) -> None:
    """This call's limits: CPU time from now on, address space above what is mapped now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + cpu) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, resource.RLIM_INFINITY))


def _serve(pipe: Connection, function: Any) -> None:
    fixed = pipe.recv()
    while True:
        try:
            arguments, cpu, memory = pipe.recv()
        except EOFError:
            return
        _limit(cpu, memory)
        try:
            answer = Answer(function(*fixed, *arguments))
        except MemoryError:
            answer = Answer(None, "needs more memory than the limit", True)
        except Exception as error:  # the document's boundary: whatever it raised becomes its recorded reason
            answer = Answer(None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
        pipe.send(tuple(answer))


def main() -> None:
    """Entry of the child: dies with its parent, writes no core file, serves until the pipe closes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    descriptor, function = sys.argv[1:]
    module, _, name = function.partition(":")
    _serve(Connection(int(descriptor)), getattr(importlib.import_module(module), name))


if __name__ == "__main__":
    main()
