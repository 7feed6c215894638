"""What `dnd render` writes from mixed sources opens in every reader: `datasets`, webdataset, and our own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset
from PIL import Image
from sets import TINY, render_here, text_spec, write_texts

from data_specs import open_shards
from data_specs.records import SampleInfo
from data_specs.spec import load_spec
from infra.card import write_card


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without words first, then typeset pages with and passages without licence, in shards of a few samples."""
    folder = tmp_path_factory.mktemp("readers")
    for cls in ("cats", "dogs"):
        (folder / "pictures" / cls).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / cls / f"{number}.png")
    write_texts(folder / "texts/a.jsonl", [f"a{i}" for i in range(12)])
    sources = [
        {"kind": "images", "uri": str(folder / "pictures")},
        {"kind": "typeset", "documents": 2, "vocabulary": 50},
        {"kind": "text", "uri": str(folder / "texts"), "licence": "CC-BY-4.0"},
    ]
    overrides = [f"render.sources={json.dumps(sources)}", "render.documents_per_unit=3", "render.val_share=0.3"]
    render_here(load_spec(TINY, [*overrides, "render.filters.min_ink=0"]), folder / "run")
    return folder / "run"


def ours(root: Path) -> dict[str, dict[str, object]]:
    """json by key of the training images, as our own reader gives them."""
    return {item["__key__"]: item["json"] for item in open_shards(str(root / "images/train"))}


def test_every_json_has_every_key_of_one_type(root: Path) -> None:
    infos = list(ours(root).values())
    assert {key: type(value) for key, value in infos[0].items()}.keys() == SampleInfo.model_fields.keys()
    for key in infos[0]:
        assert len({type(info[key]) for info in infos}) == 1 and all(info[key] is not None for info in infos), key
    assert any(info["words"] for info in infos) and not all(info["words"] for info in infos)
    assert {info["licence"] for info in infos} >= {"", "CC-BY-4.0"}


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_opens_the_tars_of_a_set_with_words(streaming: bool, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts/a.jsonl", [f"a{i}" for i in range(12)])
    render_here(text_spec(tmp_path / "texts"), tmp_path / "run")
    files = {split: str(tmp_path / f"run/images/{split}/*.tar") for split in ("train", "val")}
    found = datasets.load_dataset(
        "webdataset", data_files=files, streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    check(found["train"], tmp_path / "run")


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_opens_the_folder_with_its_card(root: Path, streaming: bool, tmp_path: Path) -> None:
    write_card(str(root))
    found = datasets.load_dataset(str(root / "images"), streaming=streaming, cache_dir=str(tmp_path))
    check(found["train"], root)


def check(rows: datasets.Dataset, root: Path) -> None:
    wanted = ours(root)
    seen = {row["__key__"]: row for row in rows}
    assert seen.keys() == wanted.keys()
    for key, row in seen.items():
        assert row["json"]["text"] == wanted[key]["text"] and list(row["json"]["words"]) == wanted[key]["words"]
        assert [list(box) for box in row["json"]["boxes"]] == wanted[key]["boxes"]
        assert row["png"].size == (32, 32)


def test_webdataset_opens_the_tars(root: Path) -> None:
    tars = sorted(map(str, (root / "images/train").glob("*.tar")))
    rows = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
    assert {row["__key__"]: row["json"] for row in rows} == ours(root)


def test_energon_prepares_the_tars_and_reads_them(root: Path, tmp_path: Path) -> None:
    """`energon prepare` as its guide has it. Energon's s3fs holds botocore below boto3's, so that no lock has it."""
    energon = pytest.importorskip(
        "megatron.energon", reason="megatron-energon is not installed: it needs an environment of its own"
    )
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for tar in (root / "images" / split).glob("*.tar"):
            (tmp_path / split / tar.name).symlink_to(tar)
    command = [str(Path(sys.executable).with_name("energon")), "prepare", str(tmp_path), "--non-interactive"]
    command += ["--split-parts", "train:train/.*", "--split-parts", "val:val/.*", "--num-workers", "1"]
    command += ["--sample-type", "CaptioningSample", "--field-map", '{"image": "png", "caption": "json[text]"}']
    run = subprocess.run([*command, "--no-progress"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    rows = energon.get_train_dataset(
        str(tmp_path),
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
    )
    seen = {row.__key__.rpartition("/")[2]: row for row in energon.get_loader(rows)}
    assert {key: row.caption for key, row in seen.items()} == {key: info["text"] for key, info in ours(root).items()}
    assert all(row.image.shape[-2:] == (32, 32) for row in seen.values())
