"""Batches of real shards: what the reader gives, a function of position, and refusals that name the shard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from code_sets import SHAPE, tiny_spec, write_codes

from data_specs import cache, open_shards, s3
from data_specs.records import FileInfo
from data_specs.sections import ShardInput
from data_specs.shards import index_uri, write_shard
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


def test_a_shard_of_fewer_samples_than_its_manifest_says_is_named(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "codes"), [4])
    manifest = open_shards(str(tmp_path / "codes")).manifest
    (entry,) = manifest.shardlist
    tar = tmp_path / "codes" / entry.url
    made = write_shard([], tar, Path(index_uri(str(tar))))
    changed = {"filesize": made.filesize, "sha256": made.sha256, "index_sha256": made.index_sha256}
    forged = manifest.model_copy(update={"shardlist": (entry.model_copy(update=changed),)})
    (tmp_path / "codes/manifest.json").write_bytes(forged.to_json())
    with pytest.raises(ValueError, match=rf"{tar.name}: 0 samples, the manifest says 4; run `dnd verify`"):
        Loader([shard_input("codes")], str(tmp_path), tiny_spec()).batch(0, 4)


def test_shards_are_fetched_in_the_order_of_their_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_codes(str(tmp_path / "a"), [2] * 12)
    write_codes(str(tmp_path / "b"), [2] * 8)
    loader = Loader([shard_input("a"), shard_input("b", weight=2)], str(tmp_path), tiny_spec())
    asked: list[str] = []
    monkeypatch.setattr(loader, "pool", SimpleNamespace(submit=lambda _, uri, *more: asked.append(uri)))
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


# ---- windows -------------------------------------------------------------------------------------------------------
def windowed(root: str, window: int) -> Loader:
    spec = tiny_spec(f"train.shuffle_window={window}", "transformer.class_dropout=0")
    return Loader([shard_input("codes")], root, spec, f"{root}/order.json")


def test_a_training_in_windows_goes_on_exactly_and_keeps_few_shards_open(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "codes"), [3, 5, 4] * 4)
    whole, later = windowed(str(tmp_path), 3), windowed(str(tmp_path), 3)
    whole.fetch_from(0)
    batches = list(whole.ahead([(first, 8) for first in range(0, 104, 8)]))
    assert len(whole.sets[0].opened) + len(whole.sets[0].fetches) <= 9  # of twelve: those of two or three windows
    later.fetch_from(56)
    for rank in range(2):  # what one rank read, two read
        for number in range(7, 13):
            codes, classes = later.batch(8 * number + 4 * rank, 4)
            assert (codes == batches[number][0][4 * rank : 4 * rank + 4]).all()
            assert (classes == batches[number][1][4 * rank : 4 * rank + 4]).all()
    items = open_shards(str(tmp_path / "codes"))
    epoch = np.concatenate([codes for codes, _ in batches[:6]])
    expected = np.stack([items[n]["codes"].reshape(-1, 2) for n in range(48)])
    assert sorted(map(bytes, epoch.astype(np.uint8))) == sorted(map(bytes, expected.astype(np.uint8)))


def test_the_window_of_the_first_start_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_codes(str(tmp_path / "codes"), [4] * 6)
    assert windowed(str(tmp_path), 2).sets[0].windows.per_epoch == 3
    plain = Loader([shard_input("codes")], str(tmp_path), tiny_spec(), f"{tmp_path}/order.json")
    assert plain.sets[0].windows.per_epoch == 3
    with pytest.raises(ValueError, match=r"shuffle_window is 3, but .*order.json says .* windows of 2 shards"):
        windowed(str(tmp_path), 3)


def test_a_set_larger_than_the_cache_is_read_within_its_limit(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard is fetched once an epoch, and at no time do more bytes lie there than allowed."""
    write_codes(f"{s3_root}/codes", [8] * 12)
    sizes = [entry.filesize for entry in open_shards(f"{s3_root}/codes").manifest.shardlist]
    limit = 8 * max(sizes)
    monkeypatch.setenv("DND_CACHE_BYTES", str(limit))
    monkeypatch.setattr(cache, "IN_USE_SECONDS", 0.0)
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.005)
    fetched, most, download = list[str](), list[int](), s3._download

    def counted(info: FileInfo, path: Path) -> None:
        fetched.append(info.uri)
        there = {
            entry.path.name.removesuffix(cache.UNFINISHED): entry.size for entry in cache._entries()
        }  # some are renamed now
        most.append(sum(there.values()))
        download(info, path)

    monkeypatch.setattr(s3, "_download", counted)
    loader = Loader([shard_input("codes")], s3_root, tiny_spec(), f"{s3_root}/order.json")
    assert 1 < loader.sets[0].windows.window <= 3
    loader.fetch_from(0)
    for _ in loader.ahead((first, 8) for first in range(0, 96, 8)):
        pass
    loader.close()
    tars = Counter(uri for uri in fetched if uri.endswith(".tar"))
    assert len(tars) == 12 and sum(tars.values()) <= 12 + 2 * loader.sets[0].windows.window
    assert max(most) <= limit
