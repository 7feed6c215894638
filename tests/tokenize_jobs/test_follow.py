"""A code plan follows its images: new shards are appended, those made anew are done again, another set is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.receipts import commit, valid_receipts
from data_specs.records import AnyUnit, Identity, Manifest, Sample, ShardEntry, ShardUnit, Totals
from data_specs.units import Plan, read_plan, write_plan
from pipeline.follow import follow, unit_of

DIGEST = "d" * 64


def name(number: int, code: str) -> str:
    return f"{number:06d}-{code * 8}.tar"


def entry(number: int, code: str, *replaces: str) -> ShardEntry:
    return ShardEntry(
        url=name(number, code),
        nsamples=0,
        filesize=1,
        md5sum="0" * 32,
        sha256=code * 64,
        index_sha256=code * 64,
        replaces=replaces,
    )


def manifest(*shards: ShardEntry, emptied: tuple[str, ...] = ()) -> Manifest:
    return Manifest(
        name="images", digest=DIGEST, complete=True, totals=Totals(), shardlist=tuple(shards), emptied=emptied
    )


def identity(images: str) -> Identity:
    return Identity(stage="encode", inputs={"shards": images})


def shards_of(plan: Plan) -> list[str | None]:
    return [unit.shard for unit in plan.units() if isinstance(unit, ShardUnit)]


def test_grown_replaced_and_emptied_shards(tmp_path: Path) -> None:
    first = [entry(0, "a"), entry(1, "a"), entry(2, "a")]
    units: list[AnyUnit] = [unit_of(number, "train", one) for number, one in enumerate(first)]
    plan = write_plan(str(tmp_path), DIGEST, identity("1"), units)
    for number in range(3):
        commit(str(tmp_path), DIGEST, number, [Sample("k", {"cls": b"0", "json": b"{}"})])
    now = (entry(0, "a"), entry(1, "b", name(1, "a")), entry(3, "a"))
    grown = follow(plan, identity("2"), manifest(*now, emptied=(name(2, "a"),)), "train")
    assert shards_of(grown) == [name(0, "a"), name(1, "b"), None, name(3, "a")]
    assert [receipt.unit for receipt in valid_receipts(str(tmp_path), DIGEST)] == [0]
    more = follow(grown, identity("3"), manifest(*now, entry(4, "a"), emptied=(name(2, "a"),)), "train")
    assert more.num_units == 5 and shards_of(more)[:4] == shards_of(grown)
    with pytest.raises(ValueError, match=r"inputs\.shards was .3., is now .4."):
        follow(more, identity("4"), manifest(entry(7, "f")), "train")
    assert read_plan(str(tmp_path)) == more
