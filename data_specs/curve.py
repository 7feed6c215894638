"""A training's curve: FOLDER/metrics.jsonl, one row a log step or validation, and the same rows to wandb."""

from __future__ import annotations

import io
import json
import os
from typing import Any

from data_specs import storage
from data_specs.digest import digest_of

Row = dict[str, Any]


class Curve:
    """Rows of metrics.jsonl. Only rank 0 writes; rows after the resumed step are dropped, so no step comes twice."""

    def __init__(self, folder: str, step: int, writes: bool, name: str) -> None:
        self.uri, self.writes = storage.join(folder, "metrics.jsonl"), writes
        self.rows = [row for row in read_rows(self.uri) if row["step"] <= step] if writes else []
        self.wandb = _start_wandb(folder, name) if writes else None
        if writes:
            self.flush()

    def add(self, row: Row) -> None:
        """Adds a row; locally it is in the file at once, on S3 with the next `flush`."""
        if not self.writes:
            return
        self.rows.append(row)
        if not storage.is_remote(self.uri):
            with open(self.uri, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.wandb:
            self.wandb.log(_flat(row), step=row["step"])

    def add_picture(self, step: int, png: bytes) -> None:
        """Shows a picture of this step in wandb."""
        if self.wandb:
            import wandb
            from PIL import Image

            self.wandb.log({"samples": wandb.Image(Image.open(io.BytesIO(png)))}, step=step)

    def cut(self, step: int) -> None:
        """Drops the rows after a step: training went back to it."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self.flush()

    def flush(self) -> None:
        """Writes the whole file anew."""
        if self.writes:
            storage.write_text(self.uri, "".join(json.dumps(row) + "\n" for row in self.rows))

    def finish(self) -> None:
        """Ends the wandb run, if there is one."""
        if self.wandb:
            self.wandb.finish()


def read_rows(uri: str) -> list[Row]:
    """Rows of a metrics.jsonl, none where it is absent; a last line cut off by a crash is left out."""
    if not storage.exists(uri):
        return []
    rows = []
    for line in storage.read_lines(uri):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _flat(row: Row) -> Row:
    """The row as wandb draws it: numbers only, those of a list (one a depth) as name/1, name/2, …"""
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, list):
            flat |= {f"{name}/{number}": one for number, one in enumerate(value, 1)}
        elif name not in ("step", "time"):
            flat[name] = value
    return flat


def _start_wandb(folder: str, name: str) -> Any:
    """A wandb run: online where WANDB_API_KEY is set, else offline in the run's folder; DND_WANDB=0 turns it off."""
    online = bool(os.environ.get("WANDB_API_KEY"))
    if os.environ.get("DND_WANDB", "1") == "0" or (storage.is_remote(folder) and not online):
        return None
    try:
        import wandb
    except ImportError:
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
    directory = None if storage.is_remote(folder) else folder
    run_id = digest_of({"folder": storage.absolute(folder)})[:12]  # the same for every restart of a run
    return wandb.init(project="dnd-transformer", name=name, mode=mode, dir=directory, id=run_id, resume="allow")
