"""Whether this process was told to stop. Used before anything slow is imported, so it imports nothing slow."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED, WRONG = 75, 2  # exit codes: told to stop, and saved; what no restart mends
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_received: list[int] = []


@contextmanager
def noted() -> Iterator[None]:
    """Note SIGTERM, SIGUSR1 and SIGINT while the block runs, in place of their effect; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def _note(number: int, _: FrameType | None) -> None:
    _received.append(number)


def stop_requested() -> bool:
    """Return whether one of the signals has come."""
    return bool(_received)
