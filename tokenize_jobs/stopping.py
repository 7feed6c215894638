"""Whether this process was told to stop. Installed before anything slow is imported, so it imports only `signal`."""

from __future__ import annotations

import signal
from types import FrameType

STOPPED, WRONG = 75, 2  # exit codes: told to stop, and saved; what no restart mends
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_received: list[int] = []


def install() -> None:
    """From here on SIGTERM, SIGUSR1 and SIGINT are noted and do nothing else."""
    for number in SIGNALS:
        signal.signal(number, _note)


def _note(number: int, _: FrameType | None) -> None:
    _received.append(number)


def told_to_stop() -> bool:
    """Whether one of the signals has come."""
    return bool(_received)
