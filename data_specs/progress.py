"""Progress of long tasks: a bar on a terminal, elsewhere one line now and then; always with rate and ETA."""

from __future__ import annotations

import sys
import time

from data_specs.text import say


class Progress:
    """Counts `total` things of a named task; `unit` is what one thing is called (images, units, steps)."""

    def __init__(self, task: str, total: int, unit: str, done: int = 0, every_seconds: float = 10.0) -> None:
        self.task = task
        self.total = total
        self.unit = unit
        self.done = done
        self.start_done = done
        self.terminal = sys.stderr.isatty()
        self.every = 0.2 if self.terminal else every_seconds
        self.started = self.shown = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add to what is done and show a line when it is time."""
        self.done += count
        if time.monotonic() - self.shown >= self.every:
            self.show(note)

    def show(self, note: str = "") -> None:
        """Show the line now."""
        self.shown = time.monotonic()
        end = "\r" if self.terminal else "\n"
        say(f"{self.line()}{'  ' + note if note else ''}", sys.stderr, end)

    def line(self) -> str:
        """Return the text of the line: task, done of total, rate, time left."""
        rate = (self.done - self.start_done) / max(time.monotonic() - self.started, 1e-9)
        left = f"{clock((self.total - self.done) / rate)} left" if rate > 0 else "?"
        return f"{self.task}: {self.done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s, {left}"

    def finish(self, note: str = "") -> None:
        """Show the last line, with the time taken."""
        taken = clock(time.monotonic() - self.started)
        sys.stderr.write("\r" if self.terminal else "")
        say(f"{self.task}: {self.done} {self.unit} in {taken}{'  ' + note if note else ''}   ", sys.stderr)


def clock(seconds: float) -> str:
    """Return seconds as 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
