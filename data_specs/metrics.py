"""A training's log: FOLDER/metrics.jsonl, one row a log step or validation, and the same rows to wandb."""

from __future__ import annotations

import json
import math
from contextlib import suppress

from data_specs import storage
from data_specs.records import LogRow, RecordError
from data_specs.telemetry import Row, Telemetry


class MetricsLog:
    """Rows of metrics.jsonl. Only rank 0 writes; rows after the resumed step are dropped, so no step comes twice."""

    def __init__(self, folder: str, step: int, writes: bool, name: str) -> None:
        self.uri = storage.join(folder, "metrics.jsonl")
        self.writes = writes
        self.rows = [row for row in read_rows(self.uri) if row["step"] <= step] if writes else []
        self.telemetry = Telemetry.start(folder, name, self.rows) if writes else None
        if writes:
            self.flush()

    def add(self, row: Row) -> None:
        """Add a row, without its numbers that are not finite; locally it is in the file at once, on S3 with `flush`."""
        if not self.writes:
            return
        self.rows.append({name: value for name, value in row.items() if _is_finite(value)})
        if not storage.is_remote(self.uri):
            with open(self.uri, "a", encoding="utf-8") as file:
                file.write(_line(self.rows[-1]))
        if self.telemetry:
            self.telemetry.wake()

    def add_picture(self, step: int, png: bytes) -> None:
        """Show a picture of this step in wandb."""
        if self.telemetry:
            self.telemetry.add_picture(step, png)

    def cut(self, step: int) -> None:
        """Drop the rows after a step: training went back to it."""
        self.rows[:] = [row for row in self.rows if row["step"] <= step]
        self.flush()

    def flush(self) -> None:
        """Write the whole file anew."""
        if self.writes:
            storage.write_text(self.uri, "".join(map(_line, self.rows)))

    def finish(self) -> None:
        """Write the file and end the wandb run, if there is one."""
        self.flush()
        if self.telemetry:
            self.telemetry.finish()


def read_rows(uri: str) -> list[Row]:
    """Return the rows of a metrics.jsonl; an absent file has none.

    Lines that are not a row are left out: a crash may have cut off the last.
    """
    rows = list[Row]()
    for line in storage.read_bytes(uri).splitlines() if storage.exists(uri) else ():
        with suppress(RecordError):
            rows.append(LogRow.parse(line, uri).model_dump(exclude_unset=True))
    return rows


def _is_finite(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
