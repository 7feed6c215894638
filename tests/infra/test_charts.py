"""Charts: curves are told apart without colour, axes are named, and what a log holds is drawn as far as it goes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from infra.report.charts import Chart, Series, chart_svg, curves_of


def test_eight_curves_differ_in_dashes_and_marks() -> None:
    curves = [Series(f"depth {n + 1}", [(0, n), (10, n + 1), (20, n)]) for n in range(8)]
    svg = chart_svg(Chart("title", "step", "bits a code", curves))
    lines = re.findall(r"<polyline [^>]*?(?:stroke-dasharray=\"([^\"]*)\")? points", svg)
    drawn = re.findall(r'd="([^"]*)" fill="(\S+)" s', svg)
    marks = {(re.sub(r"[\d. -]", "", path), fill == "none") for path, fill in drawn} - {("Mh", True)}  # of the legend
    assert len(lines) == 8 and len(set(lines)) == 8 and len(marks) == 8
    words = [element.text for element in ElementTree.fromstring(svg) if element.tag.endswith("text")]
    assert "step" in words and "bits a code" in words and "depth 8, 7 at last" in words


def test_one_point_and_names_with_markup_are_drawn() -> None:
    svg = chart_svg(Chart('a "<b>"', "step", "x", [Series("<script>", [(0, 1.5)])]))
    assert "<script>" not in svg and "nan" not in svg
    ElementTree.fromstring(svg)


def test_a_log_that_is_being_written_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    rows = '{"step": 1, "bits_per_code": 5.0, "bits_per_code_by_depth": [4.0, 6.0]}\n'
    (tmp_path / "transformer/metrics.jsonl").write_text(rows + '{"step": 2, "bits')
    charts = curves_of(str(tmp_path))
    assert [(chart.title, [curve.points for curve in chart.curves]) for chart in charts] == [
        ("Transformer: what it predicts", [[(1, 5.0)]]),
        ("The same by depth, training", [[(1, 4.0)], [(1, 6.0)]]),
    ]
    assert curves_of(str(tmp_path / "none")) == []
