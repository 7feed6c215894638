"""The acceptance of a GPU, at sizes that show on a CPU that its parts work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command import dnd

from benchmarks import roofline
from benchmarks.accept.record import HEAD, Acceptance, Row, Setting, row_line
from benchmarks.accept.run import PARTS, accept
from data_specs.spec import load_spec
from train.model import config_of

SHORT = ("machine", "golden", "graphs", "agree", "encode", "tokenizer")


@pytest.mark.system
def test_its_parts_run_and_leave_their_figures(tmp_path: Path) -> None:
    arguments = [word for part in SHORT for word in ("--part", part)]
    result = dnd("accept", "--tiny", *arguments, "--out", tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    found = Acceptance.parse((tmp_path / "accept.json").read_bytes(), "accept.json")
    assert {row.part for row in found.rows} == set(SHORT) and not found.misses
    assert [row.what for row in found.rows if "float32 product" in row.what and (row.measured or 1) < 1e-6]
    assert len([line for line in result.stdout.splitlines() if line.startswith("graphs  ")]) == 8


@pytest.mark.long
def test_all_parts_run(tmp_path: Path) -> None:
    result = dnd("accept", "--tiny", "--out", tmp_path)
    found = Acceptance.parse((tmp_path / "accept.json").read_bytes(), "accept.json")
    assert result.returncode == 0 and set(found.seconds) == set(PARTS), result.stdout[-4000:]


def test_what_is_not_as_it_should_be_misses() -> None:
    rows = [
        Row(part="a", what="slow", measured=0.3, estimated=0.5, least=0.4),
        Row(part="a", what="large", measured=2.0, most=1.0),
        Row(part="a", what="not there", measured=None, least=0.0, note="why"),
        Row(part="a", what="right", measured=1.0, least=1.0, most=1.0),
        Row(part="a", what="only told", measured=None),
    ]
    assert [row.misses for row in rows] == [True, True, True, False, False]
    lines = [HEAD, *map(row_line, rows)]
    assert (
        len(lines) == 6
        and lines[1].split()[2:] == ["0.3", "0.5", ">=", "0.4", "MISS"]
        and lines[3].endswith("MISS why")
    )


def test_a_part_that_fails_is_a_row_that_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Setting) -> None:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setitem(PARTS, "machine", broken)
    (row,) = accept(["machine"], True, None).misses
    assert row.note == "RuntimeError: no such kernel"


def test_what_was_measured_before_the_run_was_ended_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: Setting) -> Iterator[Row]:
        yield Row(part="machine", what="memory", measured=1.0)
        raise KeyboardInterrupt

    monkeypatch.setitem(PARTS, "machine", ended)
    with pytest.raises(KeyboardInterrupt):
        accept(["machine"], True, None, tmp_path / "out")
    found = Acceptance.parse((tmp_path / "out/accept.json").read_bytes(), "accept.json")
    assert [row.what for row in found.rows] == ["memory"] and set(found.seconds) == {"machine"}


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--part speed: there are machine, golden"):
        accept(["speed"], True, None)
    result = dnd("accept", "--part", "machine", "--out", tmp_path / "out")
    assert result.returncode == 1 and "torch sees none here" in result.stderr and not (tmp_path / "out").exists()


def test_the_roofline_of_fused_kernels_reaches_half_of_the_peak() -> None:
    """Of what lies between products: XXL at micro batch 32, where eager code reads and writes 300 GB a step."""
    config = config_of(load_spec("imagenet_16x16x2"))
    eager, fused = (roofline.other_bytes(config, 32, kernels) for kernels in ("eager", "compiled"))
    assert 290e9 < eager < 330e9 and fused < 0.45 * eager
    assert 0.3 < roofline.mfu(config, 32, "eager", "H100") < 0.4 <= 0.5 < roofline.mfu(config, 32, "compiled", "H100")
