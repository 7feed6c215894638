"""A set grows by what is new, or was rejected; what is there keeps its bytes, and no document comes twice."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from sets import contents, render_here, text_spec, write_texts

from data_specs import open_shards
from data_specs.records import SourceUnit
from data_specs.units import read_plan
from data_specs.verify import verify_set
from pipeline.job import RENDER
from pipeline.workers import Workers

SPLITS = ("train", "val")
IDS = [f"doc{number}" for number in range(9)]


def ids_in(root: Path) -> list[str]:
    return sorted(item["json"]["id"] for split in SPLITS for item in open_shards(str(root / "images" / split)))


def test_new_documents_become_new_units_and_the_rest_keeps_its_bytes(tmp_path: Path) -> None:
    root, texts = tmp_path / "run", tmp_path / "texts"
    first, later = [f"a{i}" for i in range(20)], [f"b{i}" for i in range(9)]
    write_texts(texts / "a.jsonl", first)
    spec = text_spec(texts)
    digests = [manifest.digest for manifest in render_here(spec, root).values()]
    before = contents(root)
    write_texts(texts / "b.jsonl", later)
    grown = render_here(spec, root, extend=True)
    after = contents(root)
    assert {name: after[name] for name in before} == before
    assert ids_in(root) == sorted(first + later)
    assert [fault for split in SPLITS for fault in verify_set(str(root / "images" / split))] == []
    assert all(manifest.digest not in digests for manifest in grown.values()), "what was trained on it must see"
    assert render_here(spec, root, extend=True) == grown and contents(root) == after, "nothing is new now"
    assert render_here(spec, root) == grown


def test_rejected_documents_are_taken_up_again(tmp_path: Path) -> None:
    root, texts = tmp_path / "run", tmp_path / "texts"
    write_texts(texts / "a.jsonl", ["a0", "broken1", "a2", "broken3", "a4"])
    spec = text_spec(texts, "render.val_share=0")
    render_here(spec, root)
    assert render_here(spec, root, extend=True)["train"].totals.offered == 5
    manifest = render_here(spec, root, retry_rejected=True)["train"]
    assert manifest.totals.offered == 7 and manifest.totals.rejected == 4
    plan = read_plan(str(root / "images/train"))
    assert plan is not None
    last = list(plan.units())[-1]
    assert isinstance(last, SourceUnit) and [d.id for d in last.documents] == ["broken1", "broken3"]


def test_an_unfinished_set_and_another_spec_are_not_extended(tmp_path: Path) -> None:
    root, texts = tmp_path / "run", tmp_path / "texts"
    write_texts(texts / "a.jsonl", [f"a{i}" for i in range(9)])
    with pytest.raises(ValueError, match="no image set to extend"):
        render_here(text_spec(texts), root, extend=True)
    render_here(text_spec(texts), root)
    with pytest.raises(ValueError, match=r"margin was 1, is now 2"):
        render_here(text_spec(texts, "render.text.margin=2"), root, extend=True)
    (root / "images/train/000000.json").unlink()
    with pytest.raises(ValueError, match="not all units are done"):
        render_here(text_spec(texts, "render.sources.0.max_documents=5"), root, extend=True)


def test_another_source_is_an_extension_and_the_old_spec_is_refused_then(tmp_path: Path) -> None:
    root = tmp_path / "run"
    for first, name in enumerate(("one", "two")):
        write_texts(tmp_path / name / "a.jsonl", [f"{i}" for i in range(first, first + 8)])
    render_here(text_spec(tmp_path / "one"), root)
    render_here(text_spec(tmp_path / "two"), root, extend=True)
    assert len(ids_in(root)) == 16
    with pytest.raises(ValueError, match=r"something else: inputs.documents of render.sources was .*--extend.*--root"):
        render_here(text_spec(tmp_path / "one"), root)


def test_ids_that_are_known_from_another_file_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, texts, elsewhere = tmp_path / "run", tmp_path / "texts", tmp_path / "elsewhere"
    write_texts(texts / "sub/a.jsonl", [f"a{i}" for i in range(20)])
    render_here(text_spec(texts), root)
    before = contents(root)
    write_texts(texts / "sub/b.jsonl", ["b0", "b1"])
    render_here(text_spec(texts), root, extend=True)
    assert not [r for r in caplog.records if r.name == "pipeline.extend"], "nothing has moved"
    texts.rename(elsewhere)
    render_here(text_spec(elsewhere), root, extend=True)
    said = [r for r in caplog.records if r.name == "pipeline.extend"]
    assert sum(r.args[1] for r in said) == 22 and "if a source has moved" in said[0].getMessage()  # type: ignore[index,operator,misc]
    assert {name: data for name, data in contents(root).items() if name in before} == before


def test_what_was_taken_for_validation_never_enters_training(tmp_path: Path) -> None:
    root, texts = tmp_path / "run", tmp_path / "texts"
    write_texts(texts / "a.jsonl", ["a0", "a1", "a2"])
    share = "render.val_share=0.01"
    manifests = render_here(text_spec(texts, share), root)
    assert (manifests["train"].totals.written, manifests["val"].totals.written) == (2, 1)
    taken = ids_in_split(root, "val")
    write_texts(texts / "b.jsonl", [f"b{i}" for i in range(300)])
    assert render_here(text_spec(texts, share), root, extend=True)["val"].totals.written > 1
    assert len(ids_in(root)) == 303 and taken[0] in ids_in_split(root, "val")


def ids_in_split(root: Path, split: str) -> list[str]:
    return [item["json"]["id"] for item in open_shards(str(root / "images" / split))]


def test_a_finished_set_is_recognised_by_reading_each_receipt_once(tmp_path: Path) -> None:
    root, opened, watches = tmp_path / "run", list[tuple[str, str]](), [True]
    write_texts(tmp_path / "texts/a.jsonl", IDS)
    spec = text_spec(tmp_path / "texts")
    made = render_here(spec, root)
    RENDER.make(spec, str(root), Workers())  # keeps the spec

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and watches and str(arguments[0]).startswith(f"{root}/images/"):
            opened.append((str(arguments[0]).rpartition("/images/")[2], str(arguments[1])))

    sys.addaudithook(watch)  # stays as long as the process
    again = RENDER.make(spec, str(root), Workers())
    watches.clear()
    assert {name.rpartition("/")[2]: manifest for name, manifest in again.items()} == made
    receipts = Counter(name for name, _ in opened if re.fullmatch(r"(train|val)/\d{6}\.json", name))
    assert len(receipts) == sum(manifest.totals.units for manifest in made.values()) and set(receipts.values()) == {1}
    tars = [name for name, _ in opened if name.endswith((".tar", ".npy", ".parquet"))]
    assert tars == [], "what is there is known from the listing"
    assert [name for name, mode in opened if mode != "r" and not name.startswith("lease")] == []
