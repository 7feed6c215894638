"""Manifests: equal work gives equal bytes; partial ones are said to be, and refused downstream."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_specs import storage
from data_specs.manifest import merge, read_manifest, summarise
from data_specs.reader import open_shards
from data_specs.receipts import commit
from data_specs.records import Dropped, Identity, Outcome, RangeUnit, Reason, Sample
from data_specs.units import Plan, write_plan
from data_specs.verify import verify_set

DIGEST, IDENTITY = "d" * 64, Identity(stage="test")
REASONS = (Reason.NOT_A_PDF, Reason.ENCRYPTED)


def outcomes(unit: int) -> list[Outcome]:
    samples = [Sample(f"{unit}-{i}", {"cls": b"0", "json": b"{}"}) for i in range(unit % 3)]
    return [*samples, Dropped("x", "doc", REASONS[unit % 2], f"{unit}"), Dropped("y", "doc", Reason.BLANK)]


def make(root: str, units: list[int], num_units: int) -> Plan:
    plan = write_plan(root, DIGEST, IDENTITY, (RangeUnit(unit=i, first=i, count=1) for i in range(num_units)))
    for unit in units:
        commit(root, DIGEST, unit, outcomes(unit))
    return plan


def test_equal_work_gives_equal_bytes(tmp_path: Path, s3_root: str) -> None:
    shuffled = random.Random(0).sample(range(9), 9)
    roots = [str(tmp_path / "a"), str(tmp_path / "b"), f"{s3_root}/set"]
    for root, order in zip(roots, (list(range(9)), shuffled, shuffled)):
        merge(make(root, order, 9), "images")
    texts = [storage.read_bytes(storage.join(root, "manifest.json")) for root in roots]
    assert texts[0] == texts[1] == texts[2]


def test_totals(tmp_path: Path) -> None:
    manifest = merge(make(str(tmp_path), list(range(9)), 9), "images")
    totals = manifest.totals
    assert totals.units == 9 and totals.offered == 27 == totals.written + totals.filtered + totals.rejected
    assert totals.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert manifest.rejects == {"not a PDF": 5, "encrypted": 4} and manifest.filtered == {"blank": 9}
    assert [entry.nsamples for entry in manifest.shardlist] == [1, 2, 1, 2, 1, 2]  # units without samples: no tar
    assert all("/" not in entry.url for entry in manifest.shardlist)


def test_a_copied_root_reads_the_same(tmp_path: Path) -> None:
    merge(make(str(tmp_path / "a"), list(range(4)), 4), "images")
    (tmp_path / "a").rename(tmp_path / "b")
    assert [item["__key__"] for item in open_shards(str(tmp_path / "b"))] == ["1-0", "2-0", "2-1"]


def test_a_missing_unit_is_refused_or_said(tmp_path: Path) -> None:
    plan = make(str(tmp_path), [0, 2], 4)
    with pytest.raises(ValueError, match="2 of 4 units have no receipt; run the stage again"):
        merge(plan, "images")
    assert not (tmp_path / "manifest.json").exists()
    partial = merge(plan, "images", partial=True)
    assert partial.complete is False and partial.totals.units == 2
    with pytest.raises(ValueError, match="not finished"):
        open_shards(str(tmp_path))
    for unit in (1, 3):
        commit(str(tmp_path), DIGEST, unit, outcomes(unit))
    assert merge(plan, "images").complete is True
    assert len(open_shards(str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a valid manifest"),
        ("{}", "not a valid manifest .*: Field required"),
        ("[]", "not a valid manifest"),
        ("\udcff", "not a valid manifest"),
        ("[" * 300, "not a valid manifest"),
        (None, "no such manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_manifest(str(tmp_path / "manifest.json"))


SCALE = """
import json, sys, time
from data_specs.manifest import merge
from data_specs.units import read_plan
started = time.time()
manifest = merge(read_plan(sys.argv[1]), "images")
# this program's own peak; ru_maxrss would be the parent's, inherited over exec
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 2**20
print(json.dumps({"seconds": time.time() - started, "gib": peak, "shards": len(manifest.shardlist)}))
"""


def _measure_merge(folder: Path, num_units: int) -> dict[str, float]:
    """Seconds and GiB of merging synthetic receipts, each with 20 rejects; tars are sparse files."""
    plan = make(str(folder), [], num_units)
    dropped = (Dropped(f"k{i}", f"doc{i}.pdf", Reason.CRASH, "SIGSEGV") for i in range(20))
    receipt = commit(str(folder), DIGEST, 0, [*outcomes(2), *dropped])
    assert receipt.shard
    for unit in range(1, plan.num_units):
        name = f"{unit:06d}-00000000.tar"
        shard = receipt.shard.model_copy(update={"name": name})
        (folder / f"{unit:06d}.json").write_bytes(receipt.model_copy(update={"unit": unit, "shard": shard}).to_json())
        with (folder / name).open("wb") as file:
            file.truncate(shard.bytes)
    done = subprocess.run([sys.executable, "-c", SCALE, str(folder)], capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    print(measured)
    return measured


def test_merging_takes_little(tmp_path: Path) -> None:
    measured = _measure_merge(tmp_path, 2_000)
    assert measured["shards"] == 2_000 and measured["gib"] < 0.3


@pytest.mark.long
def test_a_manifest_of_100_000_shards(tmp_path: Path) -> None:
    measured = _measure_merge(tmp_path, 100_000)
    assert measured["shards"] == 100_000 and measured["seconds"] < 120 and measured["gib"] < 1


def test_status_of_an_unfinished_set(tmp_path: Path) -> None:
    manifest = summarise(make(str(tmp_path), [1], 3), "images")
    assert not manifest.complete and manifest.totals.units == 1 and manifest.totals.written == 1


def test_a_large_manifest_comes_in_parts_that_are_indexes_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make(str(tmp_path), list(range(9)), 9)
    whole = merge(plan, "images")
    monkeypatch.setattr("data_specs.manifest.PART_SHARDS", 4)
    assert merge(plan, "images") == whole == read_manifest(str(tmp_path / "manifest.json"))
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert stored["shardlist"] == [] and [part["nshards"] for part in stored["parts"]] == [4, 2]
    part = json.loads((tmp_path / stored["parts"][1]["url"]).read_text())
    assert part["__kind__"] == "wids-shard-index-v1" and [entry["url"] for entry in part["shardlist"]] == [
        entry.url for entry in whole.shardlist[4:]
    ]
    assert [item["__key__"] for item in open_shards(str(tmp_path))][-1] == "8-1" and list(
        verify_set(str(tmp_path))
    ) == []
    (tmp_path / stored["parts"][0]["url"]).write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        read_manifest(str(tmp_path / "manifest.json"))
    monkeypatch.undo()
    merge(plan, "images")
    assert not list(tmp_path.glob("manifest-*")), "parts that are named no more are gone"
