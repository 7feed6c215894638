"""`--from OLD_ROOT`: a new root takes over what a stage reads, here and on S3; what does not go is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sets import contents, render_here, text_spec, write_texts

import infra.stages  # noqa: F401
from data_specs import storage
from data_specs.root import record_spec
from data_specs.spec import Spec
from data_specs.verify import verify_set
from infra.inherit import folders_of, inherit
from pipeline.stages import Stage, find


def stage(name: str) -> Stage:
    found = find(name)
    assert found
    return found


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Spec]:
    """A root with images."""
    write_texts(tmp_path / "texts/a.jsonl", [f"doc{number}" for number in range(6)])
    root, spec = tmp_path / "old", text_spec(tmp_path / "texts")
    render_here(spec, root)
    record_spec(spec, str(root), "images", ("render",))
    (root / "images/lease").mkdir()
    (root / "images/lease/000001.json").write_text("{}")
    return root, spec


def test_each_stage_takes_what_it_reads() -> None:
    assert folders_of(stage("train")) == ["images", "tokenizer", "codes"]
    assert folders_of(stage("train-tokenizer")) == ["images"]
    assert folders_of(stage("sample")) == ["images", "tokenizer", "codes", "transformer"]
    assert folders_of(stage("render")) == []


def test_a_set_is_taken_whole_and_links_are_shared(old: tuple[Path, Spec], tmp_path: Path) -> None:
    root, spec = old
    new = tmp_path / "new"
    assert "images: " in "".join(inherit(stage("train-tokenizer"), spec, str(new), str(root)))
    assert contents(new, "images/train") == contents(root, "images/train")
    assert not (new / "images/lease").exists() and list(verify_set(str(new / "images/train"))) == []
    tar = next((new / "images/train").glob("*.tar"))
    assert tar.samefile(root / "images/train" / tar.name)
    plan = new / "images/train/plan.jsonl"
    assert not plan.samefile(root / "images/train/plan.jsonl")
    assert list(inherit(stage("train-tokenizer"), spec, str(new), str(root))) == ["images: there already"]


def test_images_serve_a_tokenizer_of_another_depth(old: tuple[Path, Spec], tmp_path: Path) -> None:
    root, spec = old
    deeper = spec.model_copy(update={"shape": spec.shape.model_copy(update={"depth": 7})})
    list(inherit(stage("train-tokenizer"), deeper, str(tmp_path / "new"), str(root)))
    assert contents(tmp_path / "new", "images/train") == contents(root, "images/train")


def test_an_interrupted_one_goes_on_also_from_and_to_s3(old: tuple[Path, Spec], s3_root: str, tmp_path: Path) -> None:
    root, spec = old
    for _ in range(2):
        list(inherit(stage("train-tokenizer"), spec, s3_root, str(root)))
        storage.delete(storage.join(s3_root, "images/train/manifest.json"))
    list(inherit(stage("train-tokenizer"), spec, s3_root, str(root)))
    record_spec(spec, s3_root, "images", ("render",))
    list(inherit(stage("train-tokenizer"), spec, str(tmp_path / "back"), s3_root))
    assert contents(tmp_path / "back", "images/train") == contents(root, "images/train")


def test_what_does_not_go_is_refused_and_nothing_is_written(old: tuple[Path, Spec], tmp_path: Path) -> None:
    root, spec = old
    new, reader = tmp_path / "new", stage("train-tokenizer")
    for key, refusing in (("depth", stage("train")), ("image_size", reader)):
        other = spec.model_copy(update={"shape": spec.shape.model_copy(update={key: 7})})
        with pytest.raises(ValueError, match=rf"shape\.{key} is \d+ there and 7 in the spec"):
            list(inherit(refusing, other, str(new), str(root)))
    with pytest.raises(ValueError, match="there is none yet"):
        list(inherit(reader, spec, str(new), str(tmp_path / "nothing")))
    record_spec(spec, str(tmp_path / "bare"), "samples", ("render",))
    with pytest.raises(ValueError, match="holds nothing that `dnd train-tokenizer` reads"):
        list(inherit(reader, spec, str(new), str(tmp_path / "bare")))
    (root / "images/val/manifest.json").unlink()
    with pytest.raises(ValueError, match="run the stage that makes it"):
        list(inherit(reader, spec, str(new), str(root)))
    assert not new.exists()


def test_a_root_that_holds_something_else_keeps_it(old: tuple[Path, Spec], tmp_path: Path) -> None:
    root, spec = old
    new = tmp_path / "new"
    (new / "images/train").mkdir(parents=True)
    (new / "images/train/plan.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="holds something else already"):
        list(inherit(stage("train-tokenizer"), spec, str(new), str(root)))
    assert [path.name for path in new.rglob("*") if path.is_file()] == ["plan.jsonl"]
