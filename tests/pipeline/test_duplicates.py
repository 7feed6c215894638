"""Near duplicates over a set: what bands find is what comparing every pair finds; and the command's whole way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sets import render_here, text_spec, write_texts

from data_specs import open_shards
from pipeline import duplicates
from pipeline.removal import remove


def brute(hashes: np.ndarray, distance: int) -> list[list[int]]:
    """Groups by comparing every pair."""
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    for _ in range(len(hashes).bit_length()):
        near = (near.astype(np.int64) @ near) > 0
    return sorted({tuple(np.flatnonzero(row).tolist()) for row in near if row.sum() > 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("distance", [0, 1, 3, 6])
def test_bands_find_what_comparing_all_finds(distance: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PARTITION", 64)
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for place in range(0, 300, 3):  # every third is an earlier one with a few bits flipped
        bits = rng.choice(64, rng.integers(0, 8), replace=False).astype(np.uint64)
        hashes[place] = hashes[rng.integers(0, 300)] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    found = [tuple(group.tolist()) for group in duplicates.groups(hashes, distance, tmp_path)]
    assert sorted(found) == brute(hashes, distance) and found


def test_duplicates_of_a_set_are_named_and_can_be_removed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_texts(tmp_path / "texts/a.jsonl", [f"a{i}" for i in range(10)])
    write_texts(tmp_path / "texts/b.jsonl", [f"b{i}" for i in range(10)])  # the same ten texts
    render_here(text_spec(tmp_path / "texts"), root)
    found = list(duplicates.near_duplicates(str(root), 0))
    surplus = [name for group in found for name in group[1:]]
    assert surplus and all(name.split("/")[0] in ("train", "val") for name in surplus)
    list(remove(str(root), [], surplus))
    assert list(duplicates.near_duplicates(str(root), 0)) == []
    assert sum(len(open_shards(str(root / f"images/{split}"))) for split in ("train", "val")) == 20 - len(surplus)
