"""What a training's result depends on: the content of its inputs, never where they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from code_sets import make_root, tiny_spec
from safetensors.torch import save_file

from data_specs.digest import claim
from data_specs.records import Finished, Identity
from pipeline.stages import planned
from train.job import identity
from train.model import DnDTransformer, config_of
from train.sample_job import about_average
from train.weights import EMA_WEIGHTS


def claimed(root: str, *overrides: str) -> None:
    claim(f"{root}/transformer", identity(tiny_spec(*overrides), root))


def test_codes_elsewhere_are_the_same_codes(tmp_path: Path) -> None:
    root = make_root(tmp_path / "run")
    claimed(root)
    shutil.move(f"{root}/codes", tmp_path / "moved")
    elsewhere = f"{{manifest: {tmp_path}/moved/train}}"
    claimed(root, f"train.codes=[{elsewhere}]", f"train.val_codes={tmp_path}/moved/val")
    with pytest.raises(ValueError, match=r"codes\.0 was"):
        claimed(root, f"train.codes=[{{manifest: {tmp_path}/moved/val}}]")
    with pytest.raises(ValueError, match=r"train\.codes\.0\.class_offset was 0, is now 1"):
        claimed(root, f"train.codes=[{{manifest: {tmp_path}/moved/train, class_offset: 1}}]")


def test_what_it_started_from_may_be_gone_once_it_has_begun(tmp_path: Path) -> None:
    root, start = make_root(tmp_path), tmp_path / "start"
    start.mkdir()
    with pytest.raises(ValueError, match=r"start/ema\.safetensors: no weights to start from"):
        claimed(root, "train.init_from=start")
    save_file(DnDTransformer(config_of(tiny_spec())).state_dict(), start / EMA_WEIGHTS)
    claimed(root, "train.init_from=start")
    shutil.rmtree(start)
    claimed(root, "train.init_from=start")
    with pytest.raises(ValueError, match=r"init_from was"):
        claimed(root)


def test_a_schedule_with_an_end_is_extended_by_the_key_that_says_so(tmp_path: Path) -> None:
    root, cosine = make_root(tmp_path), ("train.schedule=cosine", "train.steps=20")
    claimed(root, *cosine)
    with pytest.raises(ValueError, match=r"train\.steps was 20, is now 40"):
        claimed(root, *cosine, "train.steps=40")
    claimed(root, *cosine, "train.steps=40", "train.extend_schedule=true")
    claimed(root, *cosine)


def test_sampling_says_that_the_average_is_worse(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert list(about_average(tiny_spec(), root)) == []
    for weights, ema, lines in ((2.0, 2.5, 1), (2.0, 1.9, 0)):
        (tmp_path / "transformer").mkdir(exist_ok=True)
        (tmp_path / "transformer/done").write_bytes(Finished(step=1, weights=weights, ema=ema).to_json())
        said = list(about_average(tiny_spec(), root))
        assert len(said) == lines and all("--set sample.ema=false" in line for line in said)
    (tmp_path / "transformer/done").write_bytes(Finished(step=1, weights=2.0, ema=2.5).to_json())
    assert list(about_average(tiny_spec("sample.ema=false"), root)) == []


def test_samples_of_another_model_are_told_to_take_another_name(tmp_path: Path) -> None:
    was, now = (Identity(stage="sample", inputs={"transformer": digit * 64}) for digit in "ab")
    planned(str(tmp_path), was, [])
    with pytest.raises(ValueError, match=r"inputs\.transformer was .*, draw under another name"):
        planned(str(tmp_path), now, [], "draw under another name (--set sample.name=…), ")
