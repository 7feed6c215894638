"""No path is part of what a set is: sources and roots that have moved go on where they were, with the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sets import TINY, contents, render_here, text_spec, write_texts

from data_specs.spec import Spec, load_spec
from infra.look import look
from pipeline.job import RENDER
from pipeline.workers import Workers

IDS = [f"doc{number}" for number in range(12)]


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def lose_some(root: Path) -> None:
    """Takes back a unit of each split, as if the job had been killed before."""
    for split in ("train", "val"):
        for path in (root / f"images/{split}").glob("000000*"):
            path.unlink()


def moved(folder: Path, to: Path) -> None:
    """Moves a folder to where each file has another time of change, and so another tag."""
    shutil.move(folder, to)
    for number, path in enumerate(sorted(to.rglob("*"))):
        os.utime(path, (number, number))


def shards(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if "-" in name.rpartition("/")[2]}


def manifests(root: Path) -> list[bytes]:
    return [(root / f"images/{split}/manifest.json").read_bytes() for split in ("train", "val")]


def test_a_source_that_moved_is_read_where_it_lies(tmp_path: Path) -> None:
    root, texts, elsewhere = tmp_path / "run", tmp_path / "texts", tmp_path / "deep/er"
    write_texts(texts / "sub/a.jsonl", IDS)
    render_here(text_spec(texts), root)
    before, whole = shards(root), manifests(root)
    lose_some(root)
    moved(texts, elsewhere)
    render_here(text_spec(elsewhere), root)
    assert (shards(root), manifests(root)) == (before, whole)
    assert Path(look(str(root), "images/train", 0)).is_file(), "dropped ones are read where they lie, too"


def test_equal_documents_make_equal_sets_wherever_they_lie(tmp_path: Path) -> None:
    write_texts(tmp_path / "one/a.jsonl", IDS)
    write_texts(tmp_path / "two/a.jsonl", IDS)
    for name in ("one", "two"):
        render_here(text_spec(tmp_path / name), tmp_path / f"run-{name}")
    assert manifests(tmp_path / "run-one") == manifests(tmp_path / "run-two")


def typeset_spec(more: str = "") -> Spec:
    source = f"render.sources=[{{kind: typeset, documents: 3}}{more}]"
    return load_spec(TINY, [source, "render.val_share=0.3", "render.documents_per_unit=1", "render.pages.crops=1"])


def test_a_root_that_moved_has_its_inputs_with_it(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    render_here(typeset_spec(), root)
    before, whole = shards(root), manifests(root)
    lose_some(root)
    moved(root, elsewhere)
    render_here(typeset_spec(), elsewhere)
    assert (shards(elsewhere), manifests(elsewhere)) == (before, whole)


def test_a_root_that_moved_is_extended_by_what_is_new_alone(tmp_path: Path) -> None:
    root, elsewhere, third = (tmp_path / name for name in ("run", "elsewhere", "third"))
    first = render_here(typeset_spec(), root)
    before, whole = shards(root), manifests(root)
    moved(root, elsewhere)
    render_here(typeset_spec(), elsewhere, extend=True)
    assert (shards(elsewhere), manifests(elsewhere)) == (before, whole), "nothing is new"
    texts = tmp_path / "texts"
    write_texts(texts / "a.jsonl", IDS)
    more = typeset_spec(f", {{kind: text, uri: {texts}}}")
    grown = render_here(more, elsewhere, extend=True)
    assert sum(grown[split].totals.written - first[split].totals.written for split in grown) == len(IDS)
    before = shards(elsewhere)
    lose_some(elsewhere)
    moved(elsewhere, third)
    assert render_here(more, third) == grown and shards(third) == before, "the first part's inputs are found as well"


def test_other_documents_at_another_place_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    root, texts, other = tmp_path / "run", tmp_path / "texts", tmp_path / "other"
    write_texts(texts / "a.jsonl", IDS)
    write_texts(other / "a.jsonl", IDS[1:])
    render_here(text_spec(texts), root)
    (root / "spec.yaml").write_text(text_spec(other).to_yaml())  # the helper writes it before
    before = everything(root)
    with pytest.raises(ValueError, match=r"inputs\.documents of render\.sources was"):
        render_here(text_spec(other), root)
    assert everything(root) == before


def test_a_half_planned_set_is_planned_to_its_end_also_where_the_source_has_grown(tmp_path: Path) -> None:
    root, texts = tmp_path / "run", tmp_path / "texts"
    write_texts(texts / "a.jsonl", IDS)
    outputs = RENDER.outputs(text_spec(texts), str(root), Workers())
    train = next(outputs).plan
    (root / "images/val/plan.jsonl").unlink()
    write_texts(texts / "b.jsonl", ["new0", "new1", "new2"])
    assert next(RENDER.outputs(text_spec(texts), str(root), Workers())).plan == train
    assert (root / "images/val/plan.jsonl").is_file()


def test_a_file_that_moved_and_changed_since_fails_its_unit(tmp_path: Path) -> None:
    root, texts, elsewhere = tmp_path / "run", tmp_path / "texts", tmp_path / "elsewhere"
    write_texts(texts / "a.jsonl", IDS)
    render_here(text_spec(texts), root)
    moved(texts, elsewhere)
    output = next(RENDER.outputs(text_spec(elsewhere), str(root), Workers()))
    with (elsewhere / "a.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"elsewhere/a\.jsonl: is not the file that was planned"):
        list(output.setup()(next(output.plan.units())))
