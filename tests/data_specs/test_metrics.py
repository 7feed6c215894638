"""A training's log across restarts, what wandb gets of it, and a wandb that does not answer."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_specs import telemetry
from data_specs.metrics import MetricsLog, read_rows
from data_specs.telemetry import flatten


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_WANDB", "0")


def test_no_step_comes_twice_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    first = MetricsLog(str(tmp_path), 0, True, "run")
    for step in (1, 2, 3):
        first.add({"step": step, "loss": 1.0 / step})
    with open(first.uri, "r+", encoding="utf-8") as file:
        lines = file.readlines()
        file.seek(0)
        file.writelines([lines[0], '{"step": NaN}\n', *lines[1:]])
        file.write('{"step": 4, "lo')
    again = MetricsLog(str(tmp_path), 2, True, "run")
    again.add({"step": 3, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_rows(again.uri)] == [(1, 1.0), (2, 0.5), (3, 0.5)]
    assert MetricsLog(str(tmp_path), 0, False, "run").rows == []  # other ranks write nothing
    assert len(read_rows(again.uri)) == 3


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null\n", b'{"loss": 1}\n', b"[" * 100_000])
def test_a_log_of_something_else_has_no_rows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert read_rows(str(tmp_path / "metrics.jsonl")) == []


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), 0, True, "run")
    log.add({"step": 1, "loss": math.nan, "rate": 0.1, "by_depth": [1.0, math.inf], "norm": -math.inf})
    (line,) = Path(log.uri).read_text().splitlines()
    assert json.loads(line) == {"step": 1, "rate": 0.1}


def test_wandb_gets_numbers_and_those_of_each_depth_by_name() -> None:
    row = {"step": 1, "bits": 2.0, "bits_by_depth": [1.0, 3.0], "time": 0.0}
    assert flatten(row) == {"bits": 2.0, "bits_by_depth/1": 1.0, "bits_by_depth/2": 3.0}


# ---- a wandb that does not answer ----------------------------------------------------------------------------------
class Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(kind: str) -> Iterator[int]:
    """The port of a wandb that is not there, takes connections and says nothing, or answers 500."""
    if kind == "500":
        with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            yield http.server_port
            http.shutdown()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "hangs":
            listener.listen(50)
        yield listener.getsockname()[1]


def history(folder: Path) -> list[int]:
    """The steps in the one offline run that a folder holds: a log of LevelDB's form behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (run,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, steps, at, parts = run.read_bytes(), list[int](), 7, b""
    while at + 7 < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record, parts = Record.FromString(parts), b""
            steps += [record.history.step.num] if record.HasField("history") else []
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
    return steps


@pytest.mark.parametrize("kind", ["dead port", "hangs", "500"])
def test_a_wandb_that_does_not_answer_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setattr(telemetry, "FINISH_SECONDS", 50.0)
    with server(kind) as port:
        account = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_INIT_TIMEOUT": "1"}
        for name, value in ({"DND_WANDB": "1"} | account).items():
            monkeypatch.setenv(name, value)
        log = MetricsLog(str(tmp_path), 0, True, "run")
        for step in (1, 2, 3):
            log.add({"step": step, "loss": 1.0 / step})
        log.finish()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: wandb:")]
    assert len(said) == 1 and said[0].endswith("offline from here on")
    assert [row["step"] for row in read_rows(log.uri)] == [1, 2, 3]
    assert history(tmp_path) == [1, 2, 3]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_two_starts_leave_one_offline_history_with_rows_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DND_WANDB", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delitem(os.environ, "WANDB_API_KEY", raising=False)
    first = MetricsLog(str(tmp_path), 0, True, "run")
    for step in (1, 2, 3):
        first.add({"step": step, "bits": 2.0, "bits_by_depth": [1.0, 3.0], "time": 0.0})
    first.finish()
    second = MetricsLog(str(tmp_path), 2, True, "run")  # from the checkpoint of step 2
    for step in (3, 4):
        second.add({"step": step, "bits": 2.0, "bits_by_depth": [1.0, 3.0], "time": 0.0})
    second.add_picture(4, picture())
    second.finish()
    assert history(tmp_path)[:4] == [1, 2, 3, 4]
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"bits_by_depth/2" in run.read_bytes()
    assert len(list(run.parent.glob("files/media/images/samples_4_*.png"))) == 1
