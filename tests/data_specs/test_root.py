"""Whose spec a root's spec is: stages write it once they have accepted it, refused commands write nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_specs import storage
from data_specs.root import read_spec, record_spec, restored_on_refusal, spec_of
from data_specs.spec import load_spec


def test_a_stage_answers_for_its_own_parts_of_the_record(tmp_path: Path) -> None:
    root, first = str(tmp_path), load_spec("demo")
    record_spec(first, root, "images", ("render",))
    other = load_spec("demo", ["train.steps=7", "render.val_share=0.5"])
    record_spec(other, root, "transformer", ("transformer", "train"))
    record = read_spec(None, root)
    assert (record.train.steps, record.render) == (7, first.render)
    assert spec_of(root, "transformer") == other and spec_of(root, "images") == first
    assert spec_of(root, "codes") == record  # nothing is kept there


def test_what_a_stage_does_not_depend_on_stays_in_the_record(tmp_path: Path) -> None:
    """As `dnd render --set shape.codebook_size=64` of a whole run: no later command without SPEC worked."""
    root = str(tmp_path)
    keys = ("render", "shape.image_size", "seed")
    record_spec(load_spec("demo"), root, "images", keys)
    record_spec(load_spec("demo", ["shape.codebook_size=64"]), root, "images", keys)
    assert read_spec(None, root) == load_spec("demo")
    record_spec(load_spec("demo", ["seed=77", "shape.codebook_size=64"]), root, "codes", ("shape", "tokenize"))
    assert read_spec(None, root) == load_spec("demo", ["shape.codebook_size=64"])
    record_spec(load_spec("demo", ["shape.image_size=128", "shape.grid=[16,16]"]), root, "images", keys)
    assert read_spec(None, root).shape.image_size == 128


def test_a_null_that_means_something_is_kept(tmp_path: Path) -> None:
    every = '[{"kind": "arxiv", "licences": null}]'
    record_spec(load_spec("demo", [f"render.sources={every}"]), str(tmp_path), "images", ("render",))
    record_spec(load_spec("demo"), str(tmp_path), "transformer", ("transformer", "train"))
    assert read_spec(None, str(tmp_path)).render.sources[0].licences is None


def test_sampling_leaves_the_record_as_it_is(tmp_path: Path) -> None:
    root = str(tmp_path)
    record_spec(load_spec("demo"), root, "images", ("render",))
    before = (tmp_path / "spec.yaml").read_bytes()
    record_spec(load_spec("demo", ["sample.temperature=0.9"]), root, "samples/hot", ())
    assert (tmp_path / "spec.yaml").read_bytes() == before
    assert spec_of(root, "samples/hot").sample.temperature == 0.9


def test_a_record_of_another_shape_is_replaced_by_the_stage_that_accepts(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "spec.yaml").write_text(load_spec("imagenet_16x16x4").to_yaml())
    record_spec(load_spec("demo"), root, "images", ("render",))
    assert read_spec(None, root) == load_spec("demo")


def test_the_roots_own_spec_serves_where_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spec\.yaml: there is none yet: name a SPEC"):
        read_spec(None, str(tmp_path))
    record_spec(load_spec("demo"), str(tmp_path), "images", ("render",))
    assert read_spec(None, str(tmp_path), ["train.steps=9"]).train.steps == 9


def test_parts_of_stages_that_are_not_used_may_be_missing(tmp_path: Path) -> None:
    whole = yaml.safe_load(load_spec("demo").to_yaml())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: whole[key] for key in ("name", "shape", "render")}))
    spec = load_spec(path)
    spec.require("render", "sample")
    with pytest.raises(ValueError, match="spec demo: train: is missing"):
        spec.require("render", "train")
    assert "train" not in yaml.safe_load(spec.to_yaml())
    record_spec(spec, str(tmp_path), "images", ("render",))
    record_spec(load_spec("demo"), str(tmp_path), "transformer", ("transformer", "train"))
    assert read_spec(None, str(tmp_path)).train == load_spec("demo").train


@pytest.mark.parametrize("refused", [ValueError, ImportError, FileNotFoundError, PermissionError, ConnectionError])
def test_what_a_refused_block_has_made_goes_and_what_an_interrupted_one_has_stays(
    tmp_path: Path, refused: type[Exception]
) -> None:
    (tmp_path / "old/empty").mkdir(parents=True)
    (tmp_path / "old/mine").touch()
    before = sorted(tmp_path.rglob("*"))
    for folder in ("old", "new/deep/inputs"):
        with pytest.raises(refused), restored_on_refusal(str(tmp_path / folder)):
            storage.write_text(str(tmp_path / folder / "set/file"), "made")
            raise refused
    made = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert made == [] or (refused is ConnectionError and len([path for path in made if path.is_file()]) == 2)


def test_on_s3_what_a_refused_block_has_made_goes(s3_root: str) -> None:
    storage.write_text(f"{s3_root}/run/inputs/mine", "")
    with pytest.raises(ValueError), restored_on_refusal(f"{s3_root}/run/inputs"):
        storage.write_text(f"{s3_root}/run/inputs/made", "")
        raise ValueError
    assert [file.uri for file in storage.list_files(s3_root)] == [f"{s3_root}/run/inputs/mine"]
