"""`dnd status` says what is there, and never fails on what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_specs.lease import hold
from data_specs.receipts import record_failure
from data_specs.records import Identity, RangeUnit
from data_specs.root import record_spec
from data_specs.spec import load_spec
from data_specs.units import write_plan
from infra.cli import app


def status(root: Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["status", str(root)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A planned set of two units, none of them done."""
    units = [RangeUnit(unit=number, first=number, count=1) for number in range(2)]
    write_plan(str(tmp_path / "images/train"), "0" * 64, Identity(stage="render"), units)
    return tmp_path


def test_a_root_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    assert "nothing here" in status(tmp_path / "none", code=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["manifest.json", "progress.json", "000000.json", "000000.failed.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"unit": 1e999}'])
def test_cut_and_empty_files_end_nothing(root: Path, name: str, content: bytes) -> None:
    (root / "images/train" / name).write_bytes(content)
    assert "images/train: 0/2 units done" in status(root)


def test_a_cut_plan_is_a_line(root: Path) -> None:
    (root / "images/train/plan.jsonl").write_bytes(b"{")
    assert "plan.jsonl" in status(root)


def test_failed_units_are_named_with_their_reason(root: Path) -> None:
    record_failure(str(root / "images/train"), 1, "OSError: no space left\n000000: all is well")
    said = status(root)
    assert "1 failed" in said and "unit 1 failed: OSError: no space left\\n000000" in said


def test_a_training_tells_step_figure_and_time_left(root: Path) -> None:
    record_spec(load_spec("demo"), str(root), "transformer", ("transformer", "train"))
    (root / "transformer/stage.json").write_text("{}")
    assert "transformer: begun, no step logged yet" in status(root)
    rows = [
        {"step": 650, "bits_per_code": 2.5, "images_per_second": 32.0, "time": 0},
        {"step": 650, "val_bits_per_code": 2},
    ]
    (root / "transformer/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 7')
    assert "transformer: step 650 of 1300, 2.500 bits per code, 2 steps/s, about 5 min left" in status(root)


def test_imported_models_and_writers_are_named(root: Path) -> None:
    (root / "tokenizer").mkdir()
    (root / "tokenizer/tokenizer.json").write_text("{}")
    with hold(str(root / "images"), "dnd render", shared=True):
        said = status(root)
    assert "tokenizer: imported" in said and "images: `dnd render` writes here" in said
    assert "writes here" not in status(root)
