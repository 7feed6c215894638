"""Verification finds each kind of damage, names it, and finds nothing where all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_specs.lease import hold
from data_specs.manifest import merge
from data_specs.receipts import commit
from data_specs.records import Dropped, Identity, RangeUnit, Reason, Sample
from data_specs.units import Plan, write_plan
from data_specs.verify import clean_litter, clean_unfinished, find_shard_sets, verify_set

NUM_UNITS, DIGEST = 3, "d" * 64


def make(root: str) -> Plan:
    units = (RangeUnit(unit=unit, first=unit, count=1) for unit in range(NUM_UNITS))
    plan = write_plan(root, DIGEST, Identity(stage="test"), units)
    for unit in range(NUM_UNITS):
        samples = [Sample(f"{unit}-{i}", {"cls": b"%d" % i, "json": b"{}"}) for i in range(unit * 2)]
        commit(root, DIGEST, unit, [*samples, Dropped("x", "doc", Reason.BLANK)])
    merge(plan, "images")
    return plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(str(tmp_path / "images" / "train"))
    return tmp_path / "images" / "train"


def the_tar(folder: Path, unit: int = 2) -> Path:
    return next(folder.glob(f"{unit:06d}-*.tar"))


def change_receipt(folder: Path, **changes: object) -> None:
    path = folder / "000002.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_set_has_no_faults(folder: Path) -> None:
    assert list(verify_set(str(folder))) == []
    assert find_shard_sets(str(folder.parent.parent)) == [str(folder)]
    assert clean_litter(str(folder)) == []


def test_over_s3(s3_root: str) -> None:
    make(f"{s3_root}/root/set")
    assert find_shard_sets(f"{s3_root}/root") == [f"{s3_root}/root/set"]
    assert list(verify_set(f"{s3_root}/root/set")) == []


@pytest.mark.parametrize("suffix", [".tar", ".index.npy"])
def test_every_flipped_byte_is_found(folder: Path, suffix: str) -> None:
    path = the_tar(folder).with_name(the_tar(folder).name.replace(".tar", suffix))
    data = path.read_bytes()
    for position in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        faults = list(verify_set(str(folder)))
        assert faults == [f"{path}: its bytes are not those its receipt names"], position


def test_a_lost_tar_and_a_lost_index_are_found(folder: Path) -> None:
    tar = the_tar(folder)
    tar.with_name(tar.name.replace(".tar", ".index.npy")).unlink()
    assert any("index.npy: is missing" in fault for fault in verify_set(str(folder)))
    tar.unlink()
    faults = list(verify_set(str(folder)))
    assert faults[0] == f"{tar}: is missing"
    assert any("manifest.json: does not agree" in fault for fault in faults)


def test_an_extra_shard_is_found_and_cleaned(folder: Path) -> None:
    for name in ("000002-00000000.tar", "000002-00000000.index.npy", "stray.tar"):
        (folder / name).write_bytes(b"litter")
    faults = list(verify_set(str(folder)))
    assert len(faults) == 3 and all("belongs to no receipt" in fault for fault in faults)
    assert sorted(clean_litter(str(folder))) == ["000002-00000000.index.npy", "000002-00000000.tar", "stray.tar"]
    assert list(verify_set(str(folder))) == []


def test_a_lost_receipt_is_found(folder: Path) -> None:
    (folder / "000002.json").unlink()
    faults = "\n".join(verify_set(str(folder)))
    assert (
        "1 of 3 units have no receipt: 2" in faults and "litter" in faults and "manifest.json: does not agree" in faults
    )


def test_a_plan_that_promises_more_than_can_be_is_found_at_once(folder: Path) -> None:
    header, _, units = (folder / "plan.jsonl").read_text().partition("\n")
    huge = json.loads(header) | {"num_units": 2**62}
    (folder / "plan.jsonl").write_text(f"{json.dumps(huge)}\n{units}")
    faults = "\n".join(verify_set(str(folder)))
    assert f"{2**62 - 3} of {2**62} units have no receipt: 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, …" in faults
    assert f"plan.jsonl: holds 3 units, its first line says {2**62}" in faults


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "e" * 64}, "its digest is not the plan's"),
        ({"unit": 1}, "names a shard of another unit"),
        ({"offered": 17}, "offered is not written"),
        ({"written": 3, "offered": 4}, "holds 4 samples, its receipt says 3"),
        ({"written": 0, "offered": 1}, "number of samples and shard do not fit"),
        ({"shard": None}, "not a valid receipt (the file: number of samples and shard do not fit"),
        ({"shard": {"name": "x"}}, "not a valid receipt (shard.name: String should match pattern"),
        ({"rejected": 3}, "not a valid receipt (rejected: Input should be a valid array)"),
        ({"replaces": ["../../x"]}, "not a valid receipt (replaces.0: String should match pattern"),
    ],
)
def test_a_receipt_that_disagrees_is_found(folder: Path, changes: dict[str, object], message: str) -> None:
    change_receipt(folder, **changes)
    faults = list(verify_set(str(folder)))
    assert any(message in fault for fault in faults), faults


def test_a_receipt_with_a_false_md5_is_found(folder: Path) -> None:
    shard = json.loads((folder / "000002.json").read_text())["shard"]
    change_receipt(folder, shard=shard | {"md5": "0" * 32})
    assert f"{the_tar(folder)}: its bytes are not those its receipt names" in list(verify_set(str(folder)))
    change_receipt(folder, shard=shard | {"index_sha256": "0" * 64})
    assert any("index.npy: its bytes are not those its receipt names" in fault for fault in verify_set(str(folder)))


def test_a_receipt_too_many_is_found(folder: Path) -> None:
    (folder / "000009.json").write_text((folder / "000002.json").read_text())
    assert any("000009.json: says it is unit 2" in fault for fault in verify_set(str(folder)))


def test_a_changed_or_lost_manifest_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["totals"]["bytes"] += 1
    path.write_text(json.dumps(manifest))
    assert list(verify_set(str(folder))) == [f"{path}: does not agree with the receipts in totals; run the stage again"]
    for text in ("{", "[]"):
        path.write_text(text)
        assert len(list(verify_set(str(folder)))) == 1
    path.unlink()
    assert list(verify_set(str(folder))) == [f"{path}: is missing; run the stage again"]


def test_no_set_at_all(tmp_path: Path) -> None:
    assert list(verify_set(str(tmp_path))) == [f"{tmp_path}: plan.jsonl is lost; run the stage again that made the set"]
    assert find_shard_sets(str(tmp_path)) == []


def test_what_killed_processes_left_behind_is_cleaned_but_not_beside_a_writer(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.part").touch()
    root = tmp_path / "root"
    for name in ("images/train/.000000.json.1a.part", "transformer/.dnd-write-x.part/big", "codes/.x.part"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "images/link").symlink_to(elsewhere)
    (root / "images/link.part").symlink_to(elsewhere)
    with hold(str(root / "codes"), "dnd tokenize", shared=True):
        removed = [Path(path).relative_to(root).as_posix() for path in clean_unfinished(str(root))]
    assert removed == ["images/link.part", "images/train/.000000.json.1a.part", "transformer/.dnd-write-x.part"]
    assert (elsewhere / "kept.part").exists() and (root / "codes/.x.part").exists()
    assert len(list(clean_unfinished(str(root)))) == 1


@pytest.mark.parametrize("what", ["000002.json", "000002-*.tar", "000002-*.parquet", "manifest.json"])
@pytest.mark.parametrize("is_link", [True, False], ids=["link to nothing", "folder"])
def test_what_is_no_file_is_one_fault_and_costs_no_shard(folder: Path, what: str, is_link: bool) -> None:
    before = sorted(path.name for path in folder.glob("*.tar"))
    path = next(folder.glob(what))
    path.unlink()
    path.symlink_to("nowhere") if is_link else path.mkdir()
    faults = list(verify_set(str(folder)))
    assert any(str(path) in fault and "\n" not in fault for fault in faults), faults
    assert not any("litter" in fault for fault in faults) and clean_litter(str(folder)) == []
    assert sorted(path.name for path in folder.glob("*.tar")) == before


def test_sets_behind_links_are_found_once_and_circles_end(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = folder.parent.parent
    disk = tmp_path_factory.mktemp("disk")
    make(str(disk / "val"))
    (folder.parent / "val").symlink_to(disk / "val")
    (root / "codes").symlink_to(disk / "nowhere")
    (folder.parent / "an-alias").symlink_to(folder)
    (folder.parent / "up").symlink_to(root)
    (root / "disk").symlink_to(disk)
    (disk / "back").symlink_to(root)
    assert find_shard_sets(str(root)) == [str(folder), str(folder.parent / "val")]
