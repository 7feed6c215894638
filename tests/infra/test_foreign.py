"""Records from somebody else: nothing outside their set is read or deleted, and one line names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sets import render_here, text_spec, write_texts

from data_specs import open_shards
from data_specs.verify import clean_litter, verify_set
from infra.card import write_card
from infra.look import look
from infra.status import status_lines
from pipeline.removal import remove
from train.loader import CodeSet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered set of eight documents, and a file that no record may touch."""
    folder = tmp_path_factory.mktemp("foreign")
    write_texts(folder / "texts/a.jsonl", [f"a{number}" for number in range(8)])
    render_here(text_spec(folder / "texts", "render.val_share=0.1"), folder / "run")
    return folder / "run"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "a/run")
    (tmp_path / "victim").write_text("kept")
    return tmp_path / "a/run"


def change(path: Path, changes: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(path.read_text())
    changes(tree)
    path.write_text(json.dumps(tree))


def readers(root: Path) -> list[Callable[[], object]]:
    """What works by the manifest of images/train."""
    train = str(root / "images/train")
    return [
        lambda: open_shards(train),
        lambda: CodeSet(train, 0, (1, 1, 1)),
        lambda: write_card(str(root)),
    ]


PART = {"nshards": 1, "nsamples": 1, "sha256": "0" * 64}
BAD_MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "part": lambda tree: tree.update(parts=[PART | {"url": "/etc/passwd"}]),
    "shard": lambda tree: tree["shardlist"][0].update(url="../../../victim"),
    "replaces": lambda tree: tree["shardlist"][0].update(replaces=["../../../victim"]),
    "type": lambda tree: tree["shardlist"][0].update(nsamples="1"),
    "nan": lambda tree: tree["totals"].update(bytes=float("nan")),
    "negative": lambda tree: tree["totals"].update(written=-1),
    "sum": lambda tree: tree["totals"].update(written=10**6),
    "reason": lambda tree: tree.update(rejects={"<script>": 1}),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_manifest_that_says_too_much_is_one_line_everywhere(root: Path, tmp_path: Path, name: str) -> None:
    change(root / "images/train/manifest.json", BAD_MANIFESTS[name])
    for reader in readers(root):
        with pytest.raises(ValueError, match=r"^[^\n]*images/train/manifest\.json: not a valid manifest [^\n]*$"):
            reader()
    told = [line for line in status_lines(str(root)) if "images/train/manifest.json: not a valid manifest" in line]
    assert len(told) == 1 and "\n" not in told[0]
    [fault] = verify_set(str(root / "images/train"))
    assert "images/train/manifest.json: not a valid manifest" in fault
    clean_litter(str(root / "images/train"))
    list(remove(str(root), ["a0"], []))
    assert (tmp_path / "victim").read_text() == "kept" and list(verify_set(str(root / "images/train"))) == []


@pytest.mark.parametrize("bomb", [b"[" * 10**6, b'{"a":' * 10**6, b"\xff", b"", b"NaN", b"9" * 10**5])
def test_a_file_that_is_no_record_is_one_line(root: Path, bomb: bytes) -> None:
    (root / "images/train/manifest.json").write_bytes(bomb)
    for reader in readers(root):
        with pytest.raises(ValueError, match=r"manifest\.json: not a valid manifest"):
            reader()
    assert any("manifest.json: not a valid manifest" in line for line in status_lines(str(root)))
    for name, record in (("plan.jsonl", "planheader"), ("000000.json", "receipt")):
        before = (root / "images/train" / name).read_bytes()
        (root / "images/train" / name).write_bytes(bomb)
        assert any(f"{name}: not a valid {record}" in fault for fault in verify_set(str(root / "images/train")))
        (root / "images/train" / name).write_bytes(before)
    (root / "images/train/manifest.json").unlink()
    (root / "images/train/progress.json").write_bytes(bomb)
    assert any("progress.json: not a valid jobstate" in line for line in status_lines(str(root)))


def test_a_receipt_deletes_nothing_outside_its_set(root: Path, tmp_path: Path) -> None:
    receipt = root / "images/train/000000.json"
    outside = os.path.relpath(tmp_path / "victim", root / "images/train")
    for name in (outside, str(tmp_path / "victim"), "000001-00000000.tar"):
        change(receipt, lambda tree: tree.update(replaces=[name]))  # noqa: B023 (called at once)
        assert any("000000.json: not a valid receipt" in fault for fault in verify_set(str(root / "images/train")))
        list(remove(str(root), [f"a{number}" for number in range(8)], []))
        with pytest.raises(ValueError, match="is not done"):
            look(str(root), "images/train", 0)
    assert (tmp_path / "victim").read_text() == "kept"
