"""Receipts: the commit point. Races, damage, lost tars, full disks: nothing twice, nothing half."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_specs import storage
from data_specs.receipts import commit, read_receipt, record_failure, valid_receipts
from data_specs.records import Dropped, InputRead, Outcome, Reason, Receipt, RecordError, Sample

DIGEST = "d" * 64
OUTCOMES: list[Outcome] = [
    Sample("a", {"cls": b"0", "json": b"{}"}),
    Dropped("b", "doc-b", Reason.BLANK),
    Dropped("c", "doc-c", Reason.WALL_TIME, "took longer than 40 s"),
    Sample("d", {"cls": b"1", "json": b"{}"}),
]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def without_run(receipt: Receipt) -> dict[str, Any]:
    return receipt.model_dump(exclude={"ran"})


def test_a_receipt_accounts_for_everything(tmp_path: Path) -> None:
    receipt = commit(str(tmp_path), DIGEST, 7, [*OUTCOMES, InputRead(bytes=3, sha256="a" * 64)])
    assert receipt.offered == 4 == receipt.written + sum(receipt.filtered.values()) + len(receipt.rejected)
    assert receipt.filtered == {"blank": 1} and receipt.shard
    rejected = {"key": "c", "source": "doc-c", "reason": "over the limit of time", "detail": "took longer than 40 s"}
    assert [reject.model_dump(mode="json") for reject in receipt.rejected] == [rejected]
    assert [read.sha256 for read in receipt.read] == ["a" * 64] and receipt.ran.seconds >= 0
    tar = receipt.shard.name
    assert tar == f"000007-{receipt.shard.sha256[:8]}.tar"
    beside = {tar.replace(".tar", ending) for ending in (".index.npy", ".parquet")}
    assert files(tmp_path) == {"000007.json", tar, *beside}
    assert read_receipt(str(tmp_path / "000007.json"), DIGEST) == receipt
    assert list(valid_receipts(str(tmp_path), DIGEST)) == [receipt]
    assert list(valid_receipts(str(tmp_path), "another")) == []


def test_a_json_that_no_reader_would_take_is_not_committed(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"^a\.json: .*page"):
        commit(str(tmp_path), DIGEST, 0, [Sample("a", {"cls": b"0", "json": b'{"page": "one"}'})])
    assert not files(tmp_path)


def test_the_second_of_two_commits_adopts_the_first(tmp_path: Path) -> None:
    first = commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    second = commit(str(tmp_path), DIGEST, 0, OUTCOMES[:1])
    assert second == first
    assert len(list(tmp_path.glob("*.tar"))) == 2  # the loser's is litter, which verify names


def _commit(folder: Path, barrier: object, results: Path, number: int) -> None:
    outcomes = [*OUTCOMES, Sample(f"of-{number % 2}", {"cls": b"2", "json": b"{}"})]
    barrier.wait()  # type: ignore[attr-defined]
    (results / str(number)).write_bytes(commit(str(folder), DIGEST, 0, outcomes).to_json())
    os._exit(0)


def test_racing_processes_agree_on_one_receipt(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(5):
        folder, results = tmp_path / f"set{number}", tmp_path / f"results{number}"
        results.mkdir()
        barrier = context.Barrier(4)
        children = [context.Process(target=_commit, args=(folder, barrier, results, i)) for i in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        stored = json.loads((folder / "000000.json").read_text())
        assert [json.loads(path.read_text()) for path in results.iterdir()] == [stored] * 4
        assert (folder / stored["shard"]["name"]).stat().st_size == stored["shard"]["bytes"]
        assert not list(folder.glob(".*"))


DAMAGES = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'"text"',
    b"{}",
    b'{"digest": "digest"}',
    b'{"digest": "digest", "shard": 1}',
    b"[" * 300,
    b'{"written": NaN}',
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_receipt_is_replaced(tmp_path: Path, damage: bytes) -> None:
    whole = commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    (tmp_path / "000000.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"^[^\n]*000000\.json: not a valid receipt [^\n]*$"):
        read_receipt(str(tmp_path / "000000.json"), DIGEST)
    assert list(valid_receipts(str(tmp_path), DIGEST)) == []
    with pytest.raises(ValueError):
        Receipt.parse(damage, "x")
    assert without_run(commit(str(tmp_path), DIGEST, 0, OUTCOMES)) == without_run(whole)
    assert len(list(valid_receipts(str(tmp_path), DIGEST))) == 1


@pytest.mark.parametrize("key", ["digest", "unit", "offered", "written", "filtered", "rejected", "shard", "ran"])
def test_a_receipt_without_one_of_its_entries_is_damaged(tmp_path: Path, key: str) -> None:
    receipt = commit(str(tmp_path), DIGEST, 0, OUTCOMES).model_dump(mode="json")
    for value in (None, "text" if key != "digest" else 1):
        with pytest.raises(ValueError, match=rf"^a/000000.json: not a valid receipt \(.*{key}"):
            Receipt.parse(json.dumps(receipt | {key: value}), "a/000000.json")


@pytest.mark.parametrize("name", ["../x.tar", "/etc/x.tar", "000001-12345678.tar", "x.tar", "000000-12345678.tar\n"])
def test_a_receipt_names_shards_of_its_own_unit_alone(tmp_path: Path, name: str) -> None:
    receipt = commit(str(tmp_path), DIGEST, 0, OUTCOMES).model_dump(mode="json")
    for changes in ({"replaces": [name]}, {"shard": receipt["shard"] | {"name": name}}):
        with pytest.raises(ValueError, match="not a valid receipt"):
            Receipt.parse(json.dumps(receipt | changes), "000000.json")


@pytest.mark.parametrize("change", ["shorter", "longer", "absent"])
def test_a_tar_of_another_size_makes_the_receipt_invalid_and_is_repaired(tmp_path: Path, change: str) -> None:
    receipt = commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    assert receipt.shard
    tar = tmp_path / receipt.shard.name
    whole = tar.read_bytes()
    tar.unlink() if change == "absent" else tar.write_bytes(whole[:-1] if change == "shorter" else whole + b"x")
    with pytest.raises(ValueError, match=rf"{tar.name}: is not there with the size"):
        read_receipt(str(tmp_path / "000000.json"), DIGEST)
    assert list(valid_receipts(str(tmp_path), DIGEST)) == []
    commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    assert tar.read_bytes() == whole
    assert len(list(valid_receipts(str(tmp_path), DIGEST))) == 1


def test_files_of_as_many_other_bytes_are_replaced_where_a_unit_is_made_anew(tmp_path: Path) -> None:
    commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json"}
    (tmp_path / "000000.json").unlink()
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_receipts_come_in_order_of_unit_and_others_are_passed_over(tmp_path: Path) -> None:
    for unit in (1_000_000, 999_999, 3, 20):
        commit(str(tmp_path), DIGEST, unit, OUTCOMES)
    for name in ("7.json", "00000x.json", "manifest.json", "000004.failed.json", "000005.txt"):
        (tmp_path / name).write_text((tmp_path / "000003.json").read_text())
    assert [r.unit for r in valid_receipts(str(tmp_path), DIGEST)] == [3, 20, 999_999, 1_000_000]


def test_success_takes_the_record_of_failure_away(tmp_path: Path) -> None:
    record_failure(str(tmp_path), 0, "it broke")
    assert json.loads((tmp_path / "000000.failed.json").read_text())["reason"] == "it broke"
    commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    assert "000000.failed.json" not in files(tmp_path)
    record_failure(str(tmp_path), 0, "a straggler of the same unit failed")
    commit(str(tmp_path), DIGEST, 0, OUTCOMES)
    assert "000000.failed.json" not in files(tmp_path)


def test_a_unit_that_raises_commits_nothing(tmp_path: Path) -> None:
    def outcomes() -> Any:
        yield OUTCOMES[0]
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        commit(str(tmp_path / "set"), DIGEST, 0, outcomes())
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("limit", [600, 3_000])
def test_a_full_disk_commits_nothing(tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE stands for the full disk, for root too: it stops the tar where it is built, or its copy."""
    code = f"""
import resource, signal
from data_specs.receipts import commit
from data_specs.records import Sample
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
fields = {{"cls": b"0", "json": b'{{"text": "%s"}}' % (b"x" * 4000)}}
commit({str(tmp_path / "set")!r}, "d" * 64, 0, [Sample("a", fields)])
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "OSError: [Errno 27]" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "making"] == []


def test_a_commit_over_s3_leaves_what_a_local_one_does(tmp_path: Path, s3_root: str) -> None:
    local, remote = (commit(root, DIGEST, 0, OUTCOMES) for root in (str(tmp_path), f"{s3_root}/set"))
    assert without_run(local) == without_run(remote)
    assert list(valid_receipts(f"{s3_root}/set", DIGEST)) == [remote]
    assert remote.shard
    storage.delete(f"{s3_root}/set/{remote.shard.name}")
    assert list(valid_receipts(f"{s3_root}/set", DIGEST)) == []
