"""What undoes or ends steps: losses that leap, and ranks that no longer answer."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from itertools import pairwise
from statistics import fmean

from data_specs.records import GuardState
from data_specs.text import say

WINDOW = 128  # accepted losses that mean and deviation are taken over; window and 6 deviations: OLMo-core
CLIPPED = 3  # a skipped loss is taken in as at most so many times the limit's distance from the mean
FEWEST = 50  # losses to know before a spike can be told from the fall of the first steps


class SpikeDetector:
    """Judges losses by the ones before; counts the steps that were skipped.

    Skipped losses widen the limit as well, clipped: data that is rare and hard is learned after a few skips, and a loss
    that leaps and stays is not, since the deviation is taken between neighbours.
    """

    def __init__(self, spike: float | None, max_skips: int, state: GuardState | None = None) -> None:
        self.spike = spike
        self.max_skips = max_skips
        self.skipped_in_a_row = 0
        self.recent = deque[float](state.recent if state else (), WINDOW)
        self.skipped = state.skipped if state else 0

    @property
    def limit(self) -> float:
        """The largest mean loss with which a step is made."""
        return self._above_mean(1)

    def _above_mean(self, times: float) -> float:
        if self.spike is None or len(self.recent) < FEWEST:
            return math.inf
        noise = math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(self.recent)) / 2)  # blind to the fall of the loss
        return fmean(self.recent) + times * self.spike * noise

    def accept(self, loss: float) -> None:
        """Take in the mean loss of a step that was made."""
        self.recent.append(loss)
        self.skipped_in_a_row = 0

    def skip(self, loss: float) -> bool:
        """Count a step that was left out, with its mean loss; return whether there were too many in a row."""
        if math.isfinite(loss):
            self.recent.append(min(loss, self._above_mean(CLIPPED)))
        self.skipped += 1
        self.skipped_in_a_row += 1
        return self.skipped_in_a_row >= self.max_skips

    def state(self) -> GuardState:
        """Return what a checkpoint keeps, for the constructor."""
        return GuardState(recent=tuple(self.recent), skipped=self.skipped)


class Watchdog:
    """Ends this process once `beat` was not called for so many seconds: some rank is dead or hangs.

    The launcher then ends the others. Timeouts of process groups do not do: those that DeepSpeed makes have their own.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last_beat = time.monotonic()
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        """Say that a step was finished."""
        self.last_beat = time.monotonic()

    def end(self) -> None:
        """Stop watching."""
        self.ended.set()

    def _watch(self) -> None:
        while (left := self.last_beat + self.seconds - time.monotonic()) > 0:
            if self.ended.wait(min(left, 60)):
                return
        say(f"error: no step for {self.seconds:.0f} s: a rank is dead or hangs; ending", sys.stderr)
        os._exit(1)
