"""Shards: deterministic bytes, a round trip through our reader, and the readers that others will use."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data_specs import manifest, receipts, storage
from data_specs.reader import open_shards
from data_specs.records import Dropped, Identity, InfoFields, RangeUnit, Reason, Sample, SampleInfo, TableRow
from data_specs.shards import INDEX_DTYPE, Shard, _header, index_uri, key_hash, open_verified, write_shard
from data_specs.table import schema
from data_specs.units import write_plan

CODES = np.arange(2 * 4 * 4 * 3, dtype=np.uint16).reshape(2, 4, 4, 3)


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def image_sample(number: int) -> Sample:
    png = io.BytesIO()
    Image.fromarray(image(number)).save(png, "png")
    fields = {"png": png.getvalue(), "cls": b"%d" % number, "json": json.dumps({"text": f"Nr. {number} ü"}).encode()}
    return Sample(f"2301-0000{number}_p1", fields)


def code_sample(number: int) -> Sample:
    npy = io.BytesIO()
    np.save(npy, CODES + np.uint16(number), allow_pickle=False)
    return Sample(f"code-{number}", {"codes.npy": npy.getvalue(), "cls": b"%d" % number, "json": b'{"text": "x"}'})


SAMPLES = {"images": image_sample, "codes": code_sample}


@pytest.fixture(params=["images", "codes"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shard_set(tmp_path: Path, kind: str) -> Path:
    """A set of two shards of six and five samples, with the same fields in each."""
    folder = tmp_path / "set"
    units = [RangeUnit(unit=number, first=number, count=1) for number in range(2)]
    plan = write_plan(str(folder), "d" * 64, Identity(stage=kind), units)
    for unit, numbers in enumerate((range(6), range(6, 11))):
        receipts.commit(str(folder), plan.digest, unit, [SAMPLES[kind](n) for n in numbers])
    manifest.merge(plan, kind)
    return folder


def test_equal_samples_give_equal_bytes(tmp_path: Path, kind: str) -> None:
    facts = []
    for name in ("a", "b"):
        samples = [SAMPLES[kind](n) for n in range(5)]
        facts.append(write_shard(samples, tmp_path / f"{name}.tar", tmp_path / f"{name}.npy"))
    assert facts[0] == facts[1]
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    data = (tmp_path / "a.tar").read_bytes()
    assert facts[0].filesize == len(data) and len(data) % 512 == 0
    assert facts[0].sha256 == hashlib.sha256(data).hexdigest() and facts[0].md5sum == hashlib.md5(data).hexdigest()
    assert facts[0].index_sha256 == hashlib.sha256((tmp_path / "a.npy").read_bytes()).hexdigest()


def test_bytes_are_pinned(tmp_path: Path) -> None:
    """A change of these digests makes every shard of every user another one: bump the format's version with it."""
    samples = [Sample("a-1", {"cls": b"7", "json": b"{}"}), Sample("b", {"cls": b"", "json": b"x" * 600})]
    facts = write_shard(samples, tmp_path / "x.tar", tmp_path / "x.npy")
    assert facts.sha256 == "75413be271760b02163ae3c46070bdf34b5e1525ee93dd4e8137b75e2a6419d8"
    assert facts.index_sha256 == "cd98273cdc14ee4a7004ed194775a6e024af6d1d0e62da877b58f3a73d6cd922"


def test_headers_say_nothing_of_the_machine(tmp_path: Path) -> None:
    write_shard([image_sample(1)], tmp_path / "x.tar", tmp_path / "x.npy")
    with tarfile.open(tmp_path / "x.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"2301-00001_p1.{field}" for field in ("png", "cls", "json")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_index_points_at_the_members(tmp_path: Path, kind: str) -> None:
    samples = [SAMPLES[kind](n) for n in range(3)]
    write_shard(samples, tmp_path / "x.tar", tmp_path / "x.index.npy")
    rows, data = np.load(tmp_path / "x.index.npy"), (tmp_path / "x.tar").read_bytes()
    assert rows.dtype == INDEX_DTYPE
    wanted = [(i, key_hash(s.key), field, value) for i, s in enumerate(samples) for field, value in s.fields.items()]
    found = [
        (int(r["sample"]), int(r["key_hash"]), r["field"].decode(), data[int(r["offset"]) :][: int(r["size"])])
        for r in rows
    ]
    assert found == wanted


def test_round_trip(shard_set: Path, kind: str) -> None:
    items = open_shards(str(shard_set))
    assert len(items) == 11 and items[-1]["__key__"] == SAMPLES[kind](10).key
    for number, item in enumerate(items):
        assert (item["__key__"], item["cls"]) == (SAMPLES[kind](number).key, number)
        if kind == "images":
            np.testing.assert_array_equal(item["image"], image(number))
            assert item["json"] == {"text": f"Nr. {number} ü"}
        else:
            np.testing.assert_array_equal(item["codes"], CODES + number)
            assert item["codes"].dtype == np.uint16
    assert [item["cls"] for item in items[4:8]] == [4, 5, 6, 7]
    for index in (11, -12):
        with pytest.raises(IndexError):
            items[index]


@pytest.mark.parametrize("key", ["2301.00001", "a/b", "../x", "", "x" * 81, "ä", "a b", "a\n"])
def test_bad_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="sample key"):
        write_shard([Sample(key, {"cls": b"0"})], tmp_path / "x.tar", tmp_path / "x.npy")


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes twice"):
        write_shard([image_sample(1), image_sample(1)], tmp_path / "x.tar", tmp_path / "x.npy")


def test_no_samples_no_tar(tmp_path: Path) -> None:
    plan = write_plan(str(tmp_path), "d" * 64, Identity(stage="test"), [RangeUnit(unit=0, first=0, count=1)])
    receipt = receipts.commit(str(tmp_path), plan.digest, 0, [Dropped("k", "s", Reason.BLANK)])
    assert (receipt.shard, receipt.offered, receipt.written) == (None, 1, 0)
    manifest.merge(plan, "images")
    assert len(open_shards(str(tmp_path))) == 0


def test_a_tar_shorter_than_its_index_is_refused(tmp_path: Path) -> None:
    write_shard([image_sample(1)], tmp_path / "x.tar", tmp_path / "x.index.npy")
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:1024])
    with pytest.raises(ValueError, match="shorter than its index"):
        Shard(str(tmp_path / "x.tar"), as_they_are(tmp_path / "x.tar"))


def test_an_index_of_another_shard_is_noticed(tmp_path: Path) -> None:
    for name, number in (("x", 1), ("y", 2)):
        write_shard([image_sample(number)], tmp_path / f"{name}.tar", tmp_path / f"{name}.index.npy")
    (tmp_path / "y.index.npy").rename(index_uri(str(tmp_path / "x.tar")))
    with pytest.raises(ValueError, match="not the one its index names"):
        Shard(str(tmp_path / "x.tar"), as_they_are(tmp_path / "x.tar")).key(0)


@pytest.mark.parametrize("suffix", [".tar", ".index.npy"])
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_one_flipped_byte_is_refused_where_it_is_read(
    tmp_path: Path, request: pytest.FixtureRequest, suffix: str, place: str
) -> None:
    set_uri = str(tmp_path / "set") if place == "folder" else request.getfixturevalue("s3_root") + "/set"
    plan = write_plan(set_uri, "d" * 64, Identity(stage="test"), [RangeUnit(unit=0, first=0, count=1)])
    receipt = receipts.commit(set_uri, plan.digest, 0, [image_sample(1), image_sample(2)])
    manifest.merge(plan, "images")
    assert receipt.shard and len(list(open_shards(set_uri))) == 2
    uri = f"{set_uri}/{receipt.shard.name.removesuffix('.tar')}{suffix}"
    data = bytearray(storage.read_bytes(uri))
    data[-700 if suffix == ".tar" else -3] ^= 1
    storage.write(uri, data)
    for read in (lambda: list(open_shards(set_uri)), lambda: receipts.remake(set_uri, receipt, lambda sample: True)):
        with pytest.raises(ValueError, match=rf"{suffix}: its bytes are not those that were made .*dnd verify"):
            read()


def test_a_damaged_cached_copy_is_fetched_once_more(s3_root: str) -> None:
    data = bytes(100_000)
    storage.write(f"{s3_root}/x.tar", data)
    path = storage.local_copy(f"{s3_root}/x.tar")
    for damage in (bytes(99_999) + b"x", data[:-1], b""):
        path.write_bytes(damage)
        with open_verified(f"{s3_root}/x.tar", hashlib.sha256(data).hexdigest()) as file:
            assert file.read() == data


def test_a_file_is_hashed_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"data")
    digest, counted = hashlib.sha256(b"data").hexdigest(), list[object]()
    hash_file = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: counted.append(given) or hash_file(*given))
    for _ in range(3):
        open_verified(str(tmp_path / "x"), digest).close()
    assert len(counted) == 1
    (tmp_path / "x").write_bytes(b"dada")
    with pytest.raises(ValueError, match="x: its bytes are not"):
        open_verified(str(tmp_path / "x"), digest)


class Found(NamedTuple):
    sha256: str
    index_sha256: str
    table_sha256: None = None


def as_they_are(tar: Path) -> Found:
    """The digests of a shard's files as they are now."""
    files = (tar, Path(index_uri(str(tar))))
    return Found(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))


def test_webdataset_opens_them(shard_set: Path, kind: str) -> None:
    import webdataset

    urls = sorted(str(path) for path in shard_set.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode(*(["rgb8"] if kind == "images" else [])))
    assert [s["__key__"] for s in samples] == [SAMPLES[kind](n).key for n in range(11)]
    assert [s["cls"] for s in samples] == list(range(11))
    if kind == "images":
        np.testing.assert_array_equal(samples[3]["png"], image(3))
        assert samples[3]["json"] == {"text": "Nr. 3 ü"}
    else:
        np.testing.assert_array_equal(samples[3]["codes.npy"], CODES + 3)


def test_huggingface_datasets_opens_them(
    shard_set: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    files = sorted(str(path) for path in shard_set.glob("*.tar"))
    rows = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", cache_dir=str(tmp_path / "hf")
    )
    assert [row["__key__"] for row in rows] == [SAMPLES[kind](n).key for n in range(11)]
    assert [int(row["cls"]) for row in rows] == list(range(11))
    if kind == "images":
        np.testing.assert_array_equal(np.array(rows[3]["png"]), image(3))
    else:
        np.testing.assert_array_equal(np.array(rows[3]["codes.npy"]), CODES + 3)


def test_the_manifest_reads_as_a_wids_index(shard_set: Path) -> None:
    index = json.loads((shard_set / "manifest.json").read_text())
    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    for entry in index["shardlist"]:
        data = (shard_set / entry["url"]).read_bytes()
        assert entry["filesize"] == len(data) and entry["md5sum"] == hashlib.md5(data).hexdigest()
    assert [entry["nsamples"] for entry in index["shardlist"]] == [6, 5]


@pytest.mark.parametrize(("name", "size"), [("a.png", 0), ("k" * 80 + ".codes.npy", 2**33 - 1), ("x-1_2.json", 511)])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    assert _header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_the_types_of_a_json_and_of_a_row_have_the_keys_of_what_is_stored() -> None:
    assert InfoFields.__annotations__.keys() == SampleInfo.model_fields.keys()
    of_the_shard = {"key", "split", "unit", "shard", "offset", "cls"}
    assert TableRow.__annotations__.keys() | of_the_shard == set(schema().names)
