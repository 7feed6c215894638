"""The verdict after the demo: figures that are as they should be, figures that are not, and commands that run."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from data_specs.records import Summary
from infra import verdict

GOOD: dict[str, Any] = {  # of the demo
    "bits_per_code": 1.05,
    "context_bits_per_code": 1.35,
    "reconstruction": {"psnr": 25.6},
    "words": {"aim": 0.6, "real": {"share": 0.95}, "reconstructed": {"share": 0.88}, "generated": {"share": 0.87}},
}


INPUTS: dict[str, Any] = {"sets": {}, "settings": {}, "validation_images": None, "validated_at": None, "engine": None}
QUALITY = {"num_images": 8, "num_identical": 0, "psnr_of_mean_error": None, "ssim": 0.9}
HISTOGRAM = {"val_entropy_bits": 2.0, "val_entropy_bits_by_depth": [2.0], "num_codes": 8}
BITS = {"bits_per_code": 2.0, "bits_per_code_by_depth": [2.0], "definition": ""}
CONTEXT = {"num_train_codes": 8, "num_val_codes": 8}


def summary_of(figures: dict[str, Any]) -> Summary:
    """A summary with these figures, as its file would be read."""
    rest = {"inputs": INPUTS, "histogram_bits_per_code": 2.0, "histogram": HISTOGRAM | BITS, "context": CONTEXT | BITS}
    tree = rest | figures | {"reconstruction": QUALITY | figures["reconstruction"]}
    return Summary.parse(json.dumps(tree), "summary.json")


def test_the_demos_own_figures_worked() -> None:
    assert [figure.verdict for figure in verdict.figures(summary_of(GOOD))] == ["worked"] * 5
    lines = list(verdict.verdict_lines(summary_of(GOOD), {"render": 61.0, "train": 3600.0}, "runs/demo"))
    assert "worked       bits per code: 1.05" in lines and "worked       real words, generated: 87%" in lines
    assert "took 1:01:01: render 1:01, train 1:00:00" in lines


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"bits_per_code": 1.4}, "bits per code"),
        ({"reconstruction": {"psnr": 12.0}}, "reconstruction"),
        ({"words": GOOD["words"] | {"reconstructed": {"share": 0.7}}}, "real words, reconstructed"),
        ({"words": GOOD["words"] | {"generated": {"share": 0.5}}}, "real words, generated"),
        ({"words": GOOD["words"] | {"real": {"share": 0.7}}}, "real words, real"),
    ],
)
def test_what_is_not_as_it_should_be_is_named_with_what_to_do(changed: dict[str, Any], name: str) -> None:
    looked = [figure for figure in verdict.figures(summary_of(GOOD | changed)) if figure.worked is False]
    assert [figure.name for figure in looked] == [name]
    assert any(looked[0].look in line for line in verdict.verdict_lines(summary_of(GOOD | changed), {}, "r"))


def test_what_was_not_measured_is_no_failure() -> None:
    none = GOOD | {"bits_per_code": None, "words": {"missing": "no engine"}, "reconstruction": {"psnr": None}}
    said = [figure.verdict for figure in verdict.figures(summary_of(none))]
    assert said == ["not measured", "worked", "not measured", "not measured", "not measured"]


def test_dnd_is_called_as_it_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/dnd"
    program.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert verdict.program() == ["bin/dnd"]
    monkeypatch.setenv("PATH", str(program.parent))
    assert verdict.program() == ["dnd"]
    monkeypatch.setattr(sys, "argv", [verdict.__file__])
    assert verdict.program() == [sys.executable, "-m", "infra.cli"]
    assert shlex.split(verdict.next_commands(f"{tmp_path}/my runs")[0])[3:6] == ["sample", "--root", "my runs"]
