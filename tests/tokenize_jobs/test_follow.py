"""A code plan follows its images: new shards are appended, those made anew are done again, another set is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_specs.receipts import commit, valid_receipts
from data_specs.units import Sample, read_plan, write_plan
from tokenize_jobs.job import _followed, _input


def entry(name: str, *replaces: str) -> dict[str, Any]:
    return {"url": f"{name}.tar", "sha256": f"sha of {name}"} | ({"replaces": list(replaces)} if replaces else {})


def test_grown_replaced_and_emptied_shards(tmp_path: Path) -> None:
    first = [entry("0-a"), entry("1-a"), entry("2-a")]
    units = [{"unit": n, "split": "train"} | _input("/images", one) for n, one in enumerate(first)]
    plan = write_plan(str(tmp_path), "d", {"input": 1}, units)
    for number in range(3):
        commit(str(tmp_path), "d", number, [Sample("k", {"cls": b"0", "json": b"{}"})])
    now = {"shardlist": [entry("0-a"), entry("1-b", "1-a.tar"), entry("3-a")], "emptied": ["2-a.tar"]}
    grown = _followed(plan, {"input": 2}, now, "/images", "train")
    assert [unit["shard"] for unit in grown.units()] == ["/images/0-a.tar", "/images/1-b.tar", None, "/images/3-a.tar"]
    assert [receipt["unit"] for receipt in valid_receipts(str(tmp_path), "d")] == [0]
    more = _followed(grown, {"input": 3}, now | {"shardlist": [*now["shardlist"], entry("4-a")]}, "/images", "train")
    assert more.num_units == 5 and [unit["shard"] for unit in more.units()][:4] == [u["shard"] for u in grown.units()]
    with pytest.raises(ValueError, match="input was 3, is now 4"):
        _followed(more, {"input": 4}, {"shardlist": [entry("7-z")]}, "/images", "train")
    assert read_plan(str(tmp_path)) == more
