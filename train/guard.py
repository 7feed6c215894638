"""What ends or undoes steps: losses that leap, judged here, and ranks that no longer answer."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean
from typing import Any

MEMORY = 128  # accepted losses that mean and deviation are taken over; window and 6 deviations: OLMo-core
FEWEST = 50  # losses to know before a spike can be told from the fall of the first steps


class Guard:
    """Skips in a row, skips altogether, and the limit above which a loss is a spike."""

    def __init__(self, spike: float | None, max_skips: int, state: dict[str, Any] | None = None) -> None:
        self.spike, self.max_skips, self.in_a_row = spike, max_skips, 0
        self.recent = deque((state or {}).get("recent", []), MEMORY)
        self.skipped = (state or {}).get("skipped", 0)

    @property
    def limit(self) -> float:
        """The largest mean loss, nats, with which a step is made."""
        if self.spike is None or len(self.recent) < FEWEST:
            return math.inf
        noise = math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(self.recent)) / 2)  # blind to the fall of the loss
        return fmean(self.recent) + self.spike * noise

    def note(self, loss: float, applied: bool) -> bool:
        """Takes in a step's mean loss, nats, and whether it was made; True when it is time to go back."""
        if applied:
            self.recent.append(loss)
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        return self.in_a_row >= self.max_skips

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, for the constructor."""
        return {"recent": list(self.recent), "skipped": self.skipped}


def watch(last_sign: Callable[[], float], seconds: float) -> None:
    """Ends this process once last_sign(), a time.monotonic(), is so many seconds old: some rank is dead or hangs.

    The launcher then ends the others. Timeouts of process groups do not do: those that DeepSpeed makes have their own.
    """

    def wait() -> None:
        while (left := last_sign() + seconds - time.monotonic()) > 0:
            time.sleep(min(left, 60))
        print(f"error: no step for {seconds:.0f} s: a rank is dead or hangs; ending", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
