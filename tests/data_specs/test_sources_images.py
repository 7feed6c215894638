"""Images with classes in every layout: the same pictures, the same numbers; and `datasets` sets of text and images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from raw_documents import read_all, texts, write_tar
from raw_documents import read_sources as offered

from data_specs import storage
from data_specs.records import RawDocument, Reason
from data_specs.sources import ImageSource, TextSource
from data_specs.sources.images import read_class_names
from data_specs.sources.planning import class_names


@pytest.fixture(scope="module")
def clothing(shared: Path) -> Path:
    return shared / "data/images/clothing"


def some(folder: Path, each: int = 4) -> list[tuple[str, Path]]:
    """(class, file) of the first images of each class."""
    return [(c.name, p) for c in sorted(folder.iterdir()) for p in sorted(c.iterdir())[:each]]


def pictures(found: list[RawDocument]) -> set[tuple[bytes, int]]:
    assert not [o.reason for o in found if o.reason]
    return {(o.data, o.cls) for o in found}


# ---- folders -------------------------------------------------------------------------------------------------------
def test_folder_per_class_with_the_splits_given(clothing: Path) -> None:
    train = ImageSource(kind="images", uri=str(clothing / "train"), split="train")
    val = ImageSource(kind="images", uri=str(clothing / "validation"), split="val")
    made = offered([train, val])
    names = class_names([train, val])
    assert list(names.values()) == sorted(p.name for p in (clothing / "train").iterdir())
    assert len(made["train"]) == sum(1 for _ in (clothing / "train").rglob("*.jpg"))
    assert all(names[o.cls] == o.id.partition("/")[0] for o in made["train"] + made["val"])
    split = offered([train.model_copy(update={"split": "hash"})], val_share=0.1)
    assert len(split["val"]) > 10 and not {o.id for o in split["val"]} & {o.id for o in split["train"]}


@pytest.fixture
def imagenet(clothing: Path, tmp_path: Path) -> Path:
    """ImageNet's layout: train/nXXXX/*.JPEG, val flat with a list; val lacks the first class of train."""
    wnids = {
        name: f"n{9000 - 100 * i:08d}" for i, name in enumerate(sorted(p.name for p in (clothing / "train").iterdir()))
    }
    for name, path in some(clothing / "train"):
        target = tmp_path / "train" / wnids[name] / f"{wnids[name]}_{path.stem[:6]}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "val").mkdir()
    lines = []
    for i, (name, path) in enumerate(some(clothing / "validation", 2)):
        if wnids[name] != min(wnids.values()):
            (tmp_path / f"val/ILSVRC2012_val_{i:08d}.JPEG").write_bytes(path.read_bytes())
            lines.append((f"ILSVRC2012_val_{i:08d}", wnids[name]))
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n" + "".join(f"{i},{w} 85 1 272 499 \n" for i, w in lines)
    )
    (tmp_path / "val.txt").write_text("".join(f"{i}.JPEG\t{w}\n" for i, w in lines))
    return tmp_path


@pytest.mark.parametrize("mapping", ["LOC_val_solution.csv", "val.txt"])
def test_imagenet_with_a_flat_val_counts_sorted_wnids(imagenet: Path, mapping: str) -> None:
    train = ImageSource(kind="images", uri=str(imagenet / "train"), split="train")
    val = ImageSource(kind="images", uri=str(imagenet / "val"), split="val", mapping=str(imagenet / mapping))
    made, wnids = offered([train, val]), sorted(p.name for p in (imagenet / "train").iterdir())
    assert class_names([train, val]) == dict(enumerate(wnids))
    assert {(o.cls, o.id.partition("/")[0]) for o in made["train"]} == set(enumerate(wnids))
    assert {o.cls for o in made["val"]} == set(range(1, len(wnids))), "val has no image of the first class"
    assert len(made["val"]) == 2 * (len(wnids) - 1) and not any(o.reason for o in made["val"])


@pytest.mark.parametrize("text", ['"ab"', "3", "null", '{"one": "cat"}'])
def test_a_file_that_names_no_classes_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json: write a list of names"):
        read_class_names(str(tmp_path / "classes.json"))


def test_an_image_that_the_list_lacks_is_a_counted_reject(imagenet: Path) -> None:
    (imagenet / "val/other.JPEG").write_bytes(next((imagenet / "val").iterdir()).read_bytes())
    val = ImageSource(kind="images", uri=str(imagenet / "val"), mapping=str(imagenet / "val.txt"), split="val")
    assert [(o.id, o.reason) for o in offered([val])["val"] if o.reason] == [("other.JPEG", Reason.NO_CLASS)]
    (imagenet / "val.txt").write_text("ILSVRC2012_val_00000000\n")
    with pytest.raises(ValueError, match=r"val\.txt: write two fields a line"):
        offered([val])


# ---- WebDataset ----------------------------------------------------------------------------------------------------
def test_webdataset_tars_of_its_own_writer(clothing: Path, tmp_path: Path) -> None:
    names = sorted(p.name for p in (clothing / "train").iterdir())
    with webdataset.ShardWriter(str(tmp_path / "shard-%04d.tar"), maxcount=15, verbose=0) as writer:
        for i, (name, path) in enumerate(some(clothing / "train")):
            writer.write({"__key__": f"{i:08d}", "jpg": path.read_bytes(), "cls": names.index(name), "json": {"x": i}})
    (tmp_path / "classes.json").write_text(json.dumps(names))
    source = ImageSource(kind="images", uri=str(tmp_path))
    made = offered([source], val_share=0.2)
    wanted = {(path.read_bytes(), names.index(name)) for name, path in some(clothing / "train")}
    assert pictures(made["train"] + made["val"]) == wanted and len(made["val"]) > 2
    assert class_names([source]) == dict(enumerate(names))
    assert {o.id.partition("/")[0] for o in made["train"]} == {
        f"shard-{i:04d}" for i in range(len(list(tmp_path.glob("*.tar"))))
    }


def test_webdataset_members_in_any_order_and_samples_without_a_class(tmp_path: Path) -> None:
    members = [
        ("a.cls", b"3\n"),
        ("a.png", b"A"),
        ("a.json", b"{}"),
        ("b.png", b"B"),
        ("d/c.JPG", b"C"),
        ("d/c.cls", b"0"),
        ("e.cls", b"1"),
    ]
    write_tar(tmp_path / "x.tar", members)  # type: ignore[arg-type]
    found = offered([ImageSource(kind="images", uri=str(tmp_path / "x.tar"))], val_share=0)["train"]
    assert [(o.id, o.data, o.cls, o.reason) for o in found] == [
        ("a", b"A", 3, None),
        ("b", b"", 0, Reason.NO_CLASS),
        ("d/c", b"C", 0, None),
    ]


# ---- tables and `datasets` -----------------------------------------------------------------------------------------
def test_parquet_with_classes_by_name_counts_as_folders_do(clothing: Path, tmp_path: Path) -> None:
    rows = [{"image": {"bytes": p.read_bytes(), "path": p.name}, "label": name} for name, p in some(clothing / "train")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    source = ImageSource(kind="images", uri=str(tmp_path))
    folder = ImageSource(kind="images", uri=str(clothing / "train"))
    names = sorted(p.name for p in (clothing / "train").iterdir())
    assert class_names([source]) == class_names([folder]) == dict(enumerate(names))
    assert pictures(offered([source], val_share=0)["train"]) == {
        (r["image"]["bytes"], names.index(r["label"])) for r in rows
    }  # type: ignore[index,arg-type]


@pytest.fixture(autouse=True)
def quiet_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield


def image_set(clothing: Path) -> datasets.Dataset:
    names = sorted(p.name for p in (clothing / "train").iterdir())
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = some(clothing / "train")
    columns = {"image": [{"bytes": p.read_bytes(), "path": None} for _, p in rows], "label": [n for n, _ in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("layout", ["saved", "saved dict", "imagefolder"])
def test_datasets_image_sets_from_a_folder(layout: str, clothing: Path, tmp_path: Path) -> None:
    names, folder = sorted(p.name for p in (clothing / "train").iterdir()), tmp_path / "set"
    if layout == "imagefolder":
        for name, path in some(clothing / "train"):
            (folder / "train" / name).mkdir(parents=True, exist_ok=True)
            (folder / "train" / name / path.name).write_bytes(path.read_bytes())
    elif layout == "saved":
        image_set(clothing).save_to_disk(folder)
    else:
        datasets.DatasetDict({"train": image_set(clothing)}).save_to_disk(folder)
    source = ImageSource(kind="images", uri=f"datasets:{folder}").prepare(str(tmp_path / "inputs"))
    found = offered([source], val_share=0)["train"]
    wanted = {(path.read_bytes(), names.index(name)) for name, path in some(clothing / "train")}
    assert pictures(found) == wanted and class_names([source]) == dict(enumerate(names))
    assert len({o.id for o in found}) == len(wanted)
    Image.open(io.BytesIO(found[0].data)).verify()


@pytest.mark.parametrize("layout", ["saved", "jsonl", "csv"])
def test_datasets_text_sets_from_a_folder(layout: str, shared: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (shared / "data/text/passages_hard.jsonl").open(encoding="utf-8")]
    rows = [line for line in lines if line["text"].encode("utf-8", "replace").decode() == line["text"]][:50]
    data, folder = datasets.Dataset.from_list(rows), tmp_path / "set"
    folder.mkdir()
    if layout == "saved":
        data.save_to_disk(folder)
    elif layout == "jsonl":
        data.to_json(folder / "train.jsonl")
    else:
        data = datasets.Dataset.from_list([r | {"text": " ".join(r["text"].split()) or "-"} for r in rows])
        data.to_csv(folder / "train.csv")
    source = TextSource(kind="text", uri=f"datasets:{folder}", max_documents=40)
    prepared = source.prepare(str(tmp_path / "inputs"))
    made = read_all(prepared, val_share=0.3)
    assert sorted(texts(made["train"] + made["val"])) == sorted((r["id"], r["text"]) for r in list(data)[:40])
    before = [p.stat() for p in (tmp_path / "inputs").rglob("*")]
    assert source.prepare(str(tmp_path / "inputs")) == prepared
    assert [p.stat() for p in (tmp_path / "inputs").rglob("*")] == before, "a copy that is whole is kept"


def test_a_data_set_is_read_once_even_to_s3(s3_root: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(30)]}).save_to_disk(tmp_path / "set")
    source = TextSource(kind="text", uri=f"datasets:{tmp_path / 'set'}").prepare(f"{s3_root}/inputs")
    assert [f.uri.rpartition(".")[2] for f in storage.list_files(f"{s3_root}/inputs")] == ["json", "parquet"]
    assert [t for _, t in texts(read_all(source, val_share=0)["train"])] == [f"text {i}" for i in range(30)]


def test_data_sets_that_cannot_be_had_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(tmp_path / "set")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for uri, message in [
        (f"datasets:{tmp_path / 'set'}", r"has no column 'text'; it has body"),
        (f"datasets:{tmp_path / 'none'}", r"cannot be opened as a data set"),
        ("datasets:someone/not-there", r"cannot be opened as a data set .* a network to reach it"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            TextSource(kind="text", uri=uri).prepare(str(tmp_path / "inputs"))
        assert "\n" not in str(caught.value)
