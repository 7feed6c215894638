"""The curve's file across restarts, and what wandb gets of it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from slurm_cluster import wait_for

from data_specs.curve import Curve, read_rows


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_WANDB", "0")


def test_no_step_comes_twice_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    first = Curve(str(tmp_path), 0, True, "run")
    for step in (1, 2, 3):
        first.add({"step": step, "loss": 1.0 / step})
    with open(first.uri, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    again = Curve(str(tmp_path), 2, True, "run")
    again.add({"step": 3, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_rows(again.uri)] == [(1, 1.0), (2, 0.5), (3, 0.5)]
    assert Curve(str(tmp_path), 0, False, "run").rows == []  # other ranks write nothing
    assert len(read_rows(again.uri)) == 3


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_wandb_gets_numbers_and_those_of_each_depth_by_name(tmp_path: Path) -> None:
    got: list[tuple[int, dict]] = []
    curve = Curve(str(tmp_path), 0, True, "run")
    curve.wandb = SimpleNamespace(log=lambda row, step: got.append((step, row)))
    curve.add({"step": 1, "bits": 2.0, "bits_by_depth": [1.0, 3.0], "time": 0.0})
    assert got == [(1, {"bits": 2.0, "bits_by_depth/1": 1.0, "bits_by_depth/2": 3.0})]


@pytest.mark.long
def test_an_offline_run_of_wandb_holds_rows_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_WANDB", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    curve = Curve(str(tmp_path), 0, True, "run")
    curve.add({"step": 1, "bits": 2.0, "bits_by_depth": [1.0, 3.0], "time": 0.0})
    curve.add_picture(1, picture())
    curve.finish()
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    wait_for(lambda: b"bits_by_depth/2" in run.read_bytes(), 30, "the rows")  # wandb's service writes after finish()
    assert len(list(run.parent.glob("files/media/images/samples_1_*.png"))) == 1
