"""Provenance of results, comparison of two, and the published tables."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_specs import code_version
from train.evaluation.published import PUBLISHED, SOURCE, Conditions, differences
from train.evaluation.results import compare, provenance, read_result, write_result

RESULTS = sorted((Path(__file__).parent / "results").glob("*.json"))  # one of each kind, and of what it may lack


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_a_result_is_written_as_it_was_read_with_command_and_versions(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["dnd", "evaluate"])
    uri = tmp_path / "result.json"
    write_result(str(uri), read_result(str(path)))
    (figures, _, _), (wanted, about, _) = (file.read_text().partition(' "versions": {\n') for file in (uri, path))
    assert about and figures == wanted
    versions = json.loads(uri.read_text())["versions"]
    assert versions["python"].startswith("3.") and versions["numpy"]
    assert list(read_result(str(uri)).tree()) == list(json.loads(path.read_text()))


def damaged(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the tree with one wrong value, and the keys of that: a number as text or not finite, anything as a list."""
    children = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, child in children:
        free = key in ("settings", "sampling")  # of any keys
        for keys, wrong in [((), {"x": float("nan")})] if free else damaged(child):
            copy = tree.copy()
            copy[key] = wrong
            yield (key, *keys), copy
    if not children:
        yield from (((), wrong) for wrong in ([str(tree), float("nan")] if isinstance(tree, int | float) else [["x"]]))


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_what_is_wrong_in_a_result_is_one_line_with_its_file_and_its_key(path: Path, tmp_path: Path) -> None:
    uri = tmp_path / "result.json"
    for keys, wrong in damaged(json.loads(path.read_text())):
        if keys[-1] not in ("notes", "forced"):  # an empty list, to which a text may be added
            uri.write_text(json.dumps(wrong))
            where = f"{uri}: not a result of `dnd evaluate` ({'.'.join(map(str, keys[:2]))}"
            with pytest.raises(ValueError, match=rf"^{re.escape(where)}[^\n]*$"):
                read_result(str(uri))


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_a_result_lacks_no_figure_and_holds_no_other(path: Path, tmp_path: Path) -> None:
    tree = json.loads(path.read_text())
    uri = tmp_path / "result.json"
    for key in tree.keys() - {"inputs", "command", "versions", "sampling", "temperature", "sweep", "split", "codebook"}:
        uri.write_text(json.dumps({name: value for name, value in tree.items() if name != key}))
        if key != "transformer":
            with pytest.raises(ValueError, match=rf"^{uri}: not a result of `dnd evaluate` \([^\n]*{key}[^\n]*$"):
                read_result(str(uri))
    for key in tree.keys() & {"exact_words", "real_words", "distinct_words", "ppl_ocr"}:
        uri.write_text(json.dumps(tree | {key: {}}))
        with pytest.raises(ValueError, match=rf"^{uri}: not a result of `dnd evaluate` \({key}: [^\n]*$"):
            read_result(str(uri))
    uri.write_text(json.dumps(tree | {"other": 1}))
    with pytest.raises(ValueError, match=rf"^{uri}: not a result of `dnd evaluate` \(other: [^\n]*$"):
        read_result(str(uri))


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


def values(figure, data, size=256, **conditions):
    """The published values of a figure under these conditions, in the tables' order."""
    wanted = {"data": data, "size": size, **conditions}.items()
    return [row.value for row in PUBLISHED if row.figure == figure and wanted <= row.conditions._asdict().items()]


def test_published_tables_hold_the_papers_figures():
    assert values("rfid", "ImageNet", model="RQ-VAE")[:4] == [2.98, 0.93, 0.60, 0.42]
    assert values("rougeL", "arXiv-Image", 512, model="RQ-VAE") == [0.14, 0.49, 0.67]
    assert values("rougeL", "Text-Image", 512, model="RQ-VAE") == [0.73, 0.81, 0.83]
    assert values("rougeL", "Text-Image", depth=None) == [0.72, 0.82]
    assert min(values("gfid", "ImageNet")) == 2.21 == values("gfid", "ImageNet", model="DnD XXXL", guidance=1.7)[0]
    assert values("gfid", "ImageNet", model="DnD XXXL", guidance=2.0) == [2.77]
    assert values("gfid", "ImageNet", guidance=2.0) == [4.12, 2.58, 2.77, 6.32, 3.18]
    assert values("inception_score", "ImageNet", model="DnD XXL") == [427.7, 295.6, 239.2, 232.5]
    assert all(row.source for row in PUBLISHED) and SOURCE.startswith("arXiv")


def test_ours_stand_beside_a_published_value_only_where_it_says_something():
    theirs = Conditions("ImageNet", 256, 2, "DnD XXL", 2.0, "inception-2015-12-05", 50_000)
    assert differences(theirs, theirs) == []
    fewer = theirs._replace(guidance=1.5, images=5000)
    assert differences(theirs, fewer) == ["guidance 1.5, not 2.0", "images 5,000, not 50,000"]
    assert differences(theirs, theirs._replace(guidance=None)) == ["guidance unknown, not 2.0"]
    for other in ({"data": "demo"}, {"size": 64}, {"depth": 4}):
        assert differences(theirs, theirs._replace(**other)) is None


def test_a_result_of_a_job_without_history_names_the_commit_that_its_submission_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_version, "REPOSITORY", tmp_path)
    monkeypatch.setenv("DND_COMMIT", "3" * 40)
    code_version.this_code.cache_clear()
    try:
        assert provenance([]).versions["commit"] == "3" * 40
    finally:
        code_version.this_code.cache_clear()
