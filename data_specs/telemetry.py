"""Rows and pictures of a training to wandb, from a thread of its own: nothing there can end, stop or slow a run."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs import storage
from data_specs.digest import digest_of
from data_specs.text import one_line, say

if TYPE_CHECKING:
    import wandb

Row = dict[str, Any]  # of a log; its quantities are the task's own, and are read back through `LogRow`
FINISH_SECONDS = 60.0  # for what is still under way when a training ends


class Telemetry:
    """Sends the rows of a list that its owner appends to. What fails is said once, and all goes on offline."""

    def __init__(self, folder: str, name: str, rows: list[Row], mode: str) -> None:
        self.folder = folder
        self.name = name
        self.rows = rows
        self.mode = mode
        self.num_sent = 0
        self.pictures = deque[tuple[int, bytes]]()
        self.news = threading.Event()
        self.ended = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    @classmethod
    def start(cls, folder: str, name: str, rows: list[Row]) -> Telemetry | None:
        """Start online where WANDB_API_KEY is set, else offline in the run's folder; None where wandb is not wanted."""
        online = bool(os.environ.get("WANDB_API_KEY"))
        mode = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
        if os.environ.get("DND_WANDB", "1") == "0" or mode == "disabled" or (storage.is_remote(folder) and not online):
            return None
        try:
            import wandb  # noqa: F401
        except ImportError:
            return None
        return cls(folder, name, rows, mode)

    def wake(self) -> None:
        """Say that there are new rows."""
        self.news.set()

    def add_picture(self, step: int, png: bytes) -> None:
        """Show a picture of a step."""
        self.pictures.append((step, png))
        self.news.set()

    def finish(self) -> None:
        """Send what is left and end the wandb run, within FINISH_SECONDS."""
        self.ended = True
        self.news.set()
        self.thread.join(FINISH_SECONDS)
        if self.thread.is_alive():
            self._say(f"still busy after {FINISH_SECONDS:.0f} s: left alone")

    # ---- in the thread ---------------------------------------------------------------------------------------------
    def _work(self) -> None:
        try:
            self._session(self.mode)
        except Exception as error:  # wandb raises what it likes; the training goes on all the same
            self._say(f"{_in_short(error)}: offline from here on")
            self._go_offline()

    def _go_offline(self) -> None:
        import wandb

        try:
            wandb.teardown()  # it holds the run's id
            self._session("offline")
        except Exception as error:
            self._say(f"{_in_short(error)}: no telemetry from here on")

    def _session(self, mode: Any) -> None:
        """Send rows to a wandb run until the training ends; an offline run holds them all, in place of older ones.

        Args:
            mode: wandb's own word, perhaps the user's (WANDB_MODE).
        """
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "60")
        run_id = digest_of({"folder": storage.absolute(self.folder)})[:12]  # the same for every restart of a run
        directory = tempfile.gettempdir() if storage.is_remote(self.folder) else self.folder
        if mode == "offline":
            for old in Path(directory).glob(f"wandb/offline-run-*-{run_id}"):
                shutil.rmtree(old, ignore_errors=True)
        run = wandb.init(project="dnd-transformer", name=self.name, mode=mode, dir=directory, id=run_id, resume="allow")
        self.num_sent = sum(row["step"] < run.step for row in self.rows)  # what an earlier start has sent
        while not self.ended:
            self.news.wait()
            self.news.clear()
            self._send(run)
        self._send(run)
        run.finish()
        wandb.teardown()  # its process writes the last of the history as it ends

    def _send(self, run: wandb.Run) -> None:
        import wandb
        from PIL import Image

        self.num_sent = min(self.num_sent, len(self.rows))  # rows are dropped where training goes back
        while self.num_sent < len(self.rows):
            row = self.rows[self.num_sent]
            run.log(flatten(row), step=row["step"])
            self.num_sent += 1
        while self.pictures:
            step, png = self.pictures.popleft()
            run.log({"samples": wandb.Image(Image.open(io.BytesIO(png)))}, step=step)

    def _say(self, message: str) -> None:
        say(f"warning: wandb: {message}", sys.stderr)


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 200)}"


def flatten(row: Row) -> Row:
    """Return a row as wandb draws it: numbers only, those of a list (one a depth) as name/1, name/2, …"""
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, list | tuple):
            flat |= {f"{name}/{number}": one for number, one in enumerate(value, 1)}
        elif name not in ("step", "time"):
            flat[name] = value
    return flat
