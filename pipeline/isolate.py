"""Killable children: documents are rendered in a process of its own, with limits on CPU time, memory and wall clock.

A renderer can crash, hang or eat memory; no exception handler catches that. The child is started as
`python -m pipeline.isolate FD COUNTERS FUNCTION`; it serves many documents and is replaced when it dies. The next
documents wait in its pipe while it works and answers travel together, so that isolation costs little; which document it
has begun stands in memory that both see.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from mmap import mmap
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Generic, TypeVar

from data_specs.records import Reason
from data_specs.sections import Limits
from data_specs.text import one_line
from pipeline.renderers import UnreadableError

AHEAD = 8  # calls sent before the first is answered
MESSAGE_ANSWERS = 4  # answers sent in one message
MESSAGE_SECONDS = 0.05  # that an answer waits for others
WALL_FACTOR = 10  # the wall-clock backstop, in units of the CPU limit
START_SECONDS = 600.0  # that a child may take to import what it runs, on a disk that others use
PR_SET_PDEATHSIG = 1
BEGUN, STEPS = range(2)  # the counters
COUNTER_BYTES = 16


Value = TypeVar("Value")


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What a child said: its value, or why there is none."""

    value: Value | None
    reason: Reason | None = None
    detail: str = ""
    step: int | None = None  # the last step that the call said it had begun, where it was ended by its limits

    @property
    def environmental(self) -> bool:
        """Whether the reason depends on the machine."""
        return self.reason is not None and self.reason.environmental


Arguments = tuple[object, ...]


@dataclass
class _Call(Generic[Value]):
    """A call that was made of a child, as it is sent, and what came of it so far."""

    message: bytes
    answer: Answer[Value] | None = None


class Child(Generic[Value]):
    """One child process that calls `function` ("module:name") with `fixed` and the arguments it is sent."""

    outbox: SimpleQueue[bytes | None]  # of the thread that writes to the present child

    def __init__(self, function: str, limits: Limits, *fixed: object) -> None:
        self.function = function
        self.limits = limits
        self.fixed = fixed
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, *arguments: object, factor: float = 1.0) -> Answer[Value]:
        """Make one call under the limits times `factor`; after a death the next call starts a fresh child."""
        return next(self.map([arguments], factor))

    def map(self, calls: Iterable[Arguments | Answer[Value]], factor: float = 1.0) -> Iterator[Answer[Value]]:
        """Yield the answers of many calls in order, up to AHEAD of them waiting in the child's pipe.

        A call that ends the child is answered by the reason; those that waited behind it, or were answered into the
        void, go to a fresh child. An Answer among the calls is handed on in its place.
        """
        waiting = deque[_Call[Value]]()
        calls = iter(calls)
        while self._enqueue(calls, waiting, factor):
            if waiting[0].answer is None:
                self._await_answers([call for call in waiting if call.answer is None], factor)
            while waiting and (answer := waiting[0].answer) is not None:
                waiting.popleft()
                yield answer

    def _enqueue(self, calls: Iterator[Arguments | Answer[Value]], waiting: deque[_Call[Value]], factor: float) -> bool:
        """Add calls to those that wait, and send them to the child if it lives; return whether any wait."""
        for call in islice(calls, AHEAD - len(waiting)):
            if isinstance(call, Answer):
                waiting.append(_Call(b"", call))
                continue
            waiting.append(_Call(self._message(call, factor)))
            if self._is_alive():
                self.outbox.put(waiting[-1].message)
        return bool(waiting)

    def _await_answers(self, calls: list[_Call[Value]], factor: float) -> None:
        """Wait until some of the calls are answered, the first among them; a fresh child is sent all of them."""
        if not self._is_alive():
            self._start()
            for call in calls:
                self.outbox.put(call.message)
        answers = self._receive(self.limits.cpu_seconds * factor)
        self.ready = True
        if isinstance(answers, Answer):
            calls[max(0, self.counters[BEGUN] - self.answered - 1)].answer = answers
        else:
            self.answered += len(answers)
            for call, answer in zip(calls, answers):
                call.answer = answer

    def _step(self) -> int | None:
        """Return the step that the present call, or the one that just ended, has begun; None before the first."""
        return self.counters[STEPS] - 1 if self.counters[STEPS] else None

    def _is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _message(self, call: Arguments, factor: float) -> bytes:
        limits = self.limits.cpu_seconds * factor, int(self.limits.memory_bytes * factor)
        return pickle.dumps((call, *limits), pickle.HIGHEST_PROTOCOL)

    def _receive(self, cpu: float) -> list[Answer[Value]] | Answer[Value]:
        """Return the child's next answers, none when it says that it is ready, or why it ended."""
        limit = cpu * WALL_FACTOR if self.ready else START_SECONDS
        try:
            if self.pipe.poll(limit):
                answers: list[Answer[Value]] = self.pipe.recv()
                return answers
        except (EOFError, ConnectionError):
            return self._death(cpu)
        self.close()
        return Answer(None, Reason.WALL_TIME, f"took longer than {limit:g} s", self._step())

    def _start(self) -> None:
        self.close()  # one that died while it waited
        ours, theirs = socket.socketpair()
        counters = os.memfd_create("dnd-begun")
        os.truncate(counters, COUNTER_BYTES)
        self.counters = _counters(counters)
        self.answered = 0
        self.ready = False
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        passed = (theirs.fileno(), counters)
        command = [sys.executable, "-P", "-m", "pipeline.isolate", *map(str, passed), self.function]
        self.process = subprocess.Popen(command, pass_fds=passed, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        os.close(counters)
        self.pipe = Connection(ours.detach())
        self.outbox = SimpleQueue[bytes | None]()
        self.outbox.put(pickle.dumps(self.fixed, pickle.HIGHEST_PROTOCOL))
        threading.Thread(target=_write_messages, args=(self.pipe, self.outbox), daemon=True).start()

    def _death(self, cpu: float) -> Answer[Value]:
        assert self.process is not None
        code = self.process.wait()
        self.close()
        if -code == signal.SIGXCPU:
            return Answer(None, Reason.CPU_TIME, f"used more than {cpu:g} s of CPU", self._step())
        if -code == signal.SIGKILL:
            return Answer(None, Reason.CRASH, "killed (memory?)", self._step())
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Answer(None, Reason.CRASH, name, self._step())

    def close(self) -> None:
        """End the child."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.outbox.put(None)
            self.pipe.close()

    __del__ = close  # a worker that goes on to another plan


def _write_messages(pipe: Connection, outbox: SimpleQueue[bytes | None]) -> None:
    """Write to a child, as a thread of its own, until None comes or the child is gone."""
    with suppress(OSError, ValueError, TypeError):  # closed under our hands: whoever receives has seen why
        while (message := outbox.get()) is not None:
            pipe.send_bytes(message)


def _counters(descriptor: int) -> memoryview:
    """Map what parent and child both see: how many calls the child has BEGUN, and how many STEPS of the last."""
    return memoryview(mmap(descriptor, COUNTER_BYTES)).cast("Q")


child_counters = list[memoryview]()  # in a child one: what its parent sees


def begin(step: int) -> None:
    """Record, in a child, which step of its call begins, so that a crash can be attributed to it."""
    for counters in child_counters:
        counters[STEPS] = step + 1


def _limit(cpu: float, memory: int) -> None:
    """Limit this call: CPU time from now on, address space above what is mapped now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + cpu) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    mapped = int(os.pread(_memory_map(), 64, 0).split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, resource.RLIM_INFINITY))


@lru_cache(maxsize=1)
def _memory_map() -> int:
    """Open the file in which the kernel says how much this process has mapped."""
    return os.open("/proc/self/statm", os.O_RDONLY)


def _serve(pipe: Connection, counters: memoryview, function: Callable[..., object]) -> None:
    """Says that it is ready, then answers calls until the pipe closes; answers are batched to save context switches."""
    pipe.send([])  # what it took to start is no document's time
    fixed = pipe.recv()
    poller = select.poll()
    poller.register(pipe.fileno(), select.POLLIN)
    answers = list[Answer[object]]()
    last_sent = time.monotonic()
    while True:
        try:
            arguments, cpu, memory = pipe.recv()
        except EOFError:
            return
        counters[STEPS] = 0
        counters[BEGUN] += 1
        _limit(cpu, memory)
        answers.append(_answer(function, *fixed, *arguments))
        if len(answers) >= MESSAGE_ANSWERS or time.monotonic() - last_sent > MESSAGE_SECONDS or not poller.poll(0):
            pipe.send(answers)
            answers = []
            last_sent = time.monotonic()


def _answer(function: Callable[..., object], *arguments: object) -> Answer[object]:
    try:
        return Answer(function(*arguments))
    except MemoryError:
        return Answer(None, Reason.MEMORY, step=child_counters[0][STEPS] - 1)
    except UnreadableError as error:
        return Answer(None, error.reason, error.detail)
    except Exception as error:  # the document's boundary: whatever it raised becomes its recorded reason
        return Answer(None, Reason.UNREADABLE, one_line(f"{type(error).__name__}: {error}", 200))


def main() -> None:
    """Run the child: die with its parent, write no core file, serve until the pipe closes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    descriptor, counters, function = sys.argv[1:]
    module, _, name = function.partition(":")
    child_counters.append(_counters(int(counters)))
    called = getattr(importlib.import_module(module), name)
    gc.freeze()  # what was imported stays: no collection need look at it again
    _serve(Connection(int(descriptor)), child_counters[0], called)


if __name__ == "__main__":
    importlib.import_module("pipeline.isolate").main()  # the module that renderers know, not its double __main__
