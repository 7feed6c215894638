"""Provenance of results, comparison of two, and the published tables."""

from train.evaluation.published import PUBLISHED, SOURCE, published
from train.evaluation.results import compare, with_provenance


def test_results_carry_command_and_versions():
    result = with_provenance({"figures": {"psnr": 20.0}}, ["dnd", "evaluate", "--root", "x"])
    assert result["figures"] == {"psnr": 20.0} and result["command"][1] == "evaluate"
    assert result["versions"]["python"].startswith("3.") and result["versions"]["numpy"]


def test_compare_puts_figures_side_by_side_and_names_differing_assumptions():
    a = {"figures": {"gfid": 3.0, "sfid": 5.0}, "reference": {"digest": "aa", "kind": "training"}, "command": ["x"]}
    b = {"figures": {"gfid": 2.5}, "reference": {"digest": "bb", "kind": "training"}, "worst": [{"rougeL": 0.1}]}
    result = compare(a, b)
    assert result["figures"] == [
        {"name": "figures.gfid", "a": 3.0, "b": 2.5, "difference": -0.5},
        {"name": "figures.sfid", "a": 5.0, "b": None, "difference": None},
    ]
    assert result["assumptions"] == [{"name": "reference.digest", "a": "aa", "b": "bb"}]
    assert compare(a, a)["assumptions"] == []


def test_truth_values_are_assumptions_and_lists_are_followed():
    result = compare({"forced": True, "by_depth": [1, 2]}, {"forced": False, "by_depth": [1, 4]})
    assert result["assumptions"] == [{"name": "forced", "a": True, "b": False}]
    assert [row["difference"] for row in result["figures"]] == [0.0, 2.0]


def test_published_tables_hold_the_designs_figures():
    assert [row.value for row in published("reconstruction", "ImageNet")] == [2.98, 0.93, 0.60, 0.42]
    assert [row.value for row in published("reading", "arXiv-Image")] == [0.14, 0.49, 0.67]
    assert min(row.value for row in published("generation")) == 2.21
    assert all(row.conditions for row in PUBLISHED) and SOURCE.startswith("arXiv")
