"""Batches of real shards: what the reader gives, a function of position, and refusals that name the shard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from code_sets import SHAPE, tiny_spec, write_codes

from data_specs import open_shards
from data_specs.spec import ShardInput
from train import order
from train.loader import Loader


def shard_input(manifest: str, **more: float) -> ShardInput:
    return ShardInput.model_validate({"manifest": manifest, **more})


def test_batches_hold_what_the_reader_reads(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "codes"), [5, 8, 3], views=2)
    spec = tiny_spec("transformer.class_dropout=0.0")
    codes, classes = Loader([shard_input("codes")], str(tmp_path), spec).batch(10, 20)
    items, positions = open_shards(str(tmp_path / "codes")), np.arange(10, 30)
    samples = order.positions_to_samples(spec.seed, positions, len(items))
    views = (order.draw_uniform(spec.seed, positions, order.VIEW) * 2).astype(int)
    assert set(views) == {0, 1}
    assert codes.dtype == classes.dtype == np.int64
    for row, (sample, view) in enumerate(zip(samples, views, strict=True)):
        assert (codes[row] == items[int(sample)]["codes"][view].reshape(-1, SHAPE[2])).all()
        assert classes[row] == items[int(sample)]["cls"]


def test_batches_are_a_function_of_position(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "a"), [20])
    write_codes(str(tmp_path / "b"), [7, 4], classes=2)
    spec = tiny_spec("transformer.num_classes=5", "transformer.class_dropout=0.3")
    inputs = [shard_input("a", weight=3), shard_input("b", class_offset=3)]
    loader = Loader(inputs, str(tmp_path), spec)
    codes, classes = loader.batch(0, 64)
    parts = list(Loader(inputs, str(tmp_path), spec).ahead([(0, 24), (24, 40)]))
    assert (np.concatenate([part[0] for part in parts]) == codes).all()
    assert (np.concatenate([part[1] for part in parts]) == classes).all()
    assert set(classes) == {0, 1, 2, 3, 4, 5}  # 5: dropped
    assert 0.1 < (classes == 5).mean() < 0.5


def test_validation_reads_in_order_and_starts_again(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "codes"), [3, 2])
    codes, _ = Loader([shard_input("codes")], str(tmp_path), tiny_spec()).in_order(3, 4)
    items = open_shards(str(tmp_path / "codes"))
    assert (codes == np.stack([items[n]["codes"].reshape(-1, 2) for n in (3, 4, 0, 1)])).all()


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "codes"), [4])
    write_codes(str(tmp_path / "whole"), [4])
    tar = next((tmp_path / "codes").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    loader = Loader([shard_input("codes"), shard_input("whole")], str(tmp_path), tiny_spec())
    loader.fetch_from(0)
    loader.sets[1].read(np.arange(4), np.zeros(4))
    with pytest.raises(ValueError, match=tar.name):
        loader.batch(0, 8)


def test_shards_are_fetched_in_the_order_of_their_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_codes(str(tmp_path / "a"), [2] * 12)
    write_codes(str(tmp_path / "b"), [2] * 8)
    loader = Loader([shard_input("a"), shard_input("b", weight=2)], str(tmp_path), tiny_spec())
    asked: list[str] = []
    monkeypatch.setattr(loader, "pool", SimpleNamespace(submit=lambda _, uri, sha256: asked.append(uri)))
    loader.fetch_from(5)
    assert sorted(asked) == sorted(uri for entry in loader.sets for uri in entry.set.shard_uris)
    used = [loader.read_order(position, 1) for position in range(5, 50)]
    uris = [loader.sets[int(n[0])].set.shard_uris[int(s[0]) // 2] for n, s, *_ in used]
    assert asked[:15] == list(dict.fromkeys(uris))[:15]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"shape": (2, 8, 2)}, r"codes are uint16 \[1, 2, 8, 2\]"),
        ({"vocabulary": 40}, r"sample s0.*codebook_size is 16"),
        ({"classes": 4}, r"has class 3 .*num_classes is 3: raise it"),
    ],
)
def test_codes_that_do_not_fit_the_spec_are_refused(tmp_path: Path, made: dict, message: str) -> None:
    write_codes(str(tmp_path / "codes"), [12], **made)
    with pytest.raises(ValueError, match=message):
        Loader([shard_input("codes")], str(tmp_path), tiny_spec()).batch(0, 12)


def test_a_set_without_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the stage that makes it"):
        Loader([shard_input("codes")], str(tmp_path), tiny_spec())
