"""Takedowns: gone from every shard, never to come back, whatever kills the command midway."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sets import contents, render_here, text_spec, write_texts
from typer.testing import CliRunner

import infra.stages  # noqa: F401 (what shows a set registers itself)
from data_specs import open_shards, storage
from data_specs.lease import hold, holder_of
from data_specs.receipts import commit
from data_specs.records import Identity, Manifest, Removed, Sample
from data_specs.spec import load_spec
from data_specs.units import Plan, read_plan
from data_specs.verify import verify_set
from infra.cli import app
from pipeline.follow import plan_by_shards
from pipeline.job import RENDER
from pipeline.removal import normalised_id, remove, remove_again
from pipeline.workers import Workers

SPLITS = ("train", "val")
IDS = [f"doc{i}" for i in range(24)]
GONE = ["doc3", "doc4", "doc20"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A rendered set of 24 documents."""
    write_texts(tmp_path / "texts/a.jsonl", IDS)
    render_here(text_spec(tmp_path / "texts"), tmp_path / "run")
    return tmp_path / "run"


def ids_in(root: Path) -> list[str]:
    return sorted(item["json"]["id"] for split in SPLITS for item in open_shards(str(root / "images" / split)))


def faults(root: Path) -> list[str]:
    return [fault for split in SPLITS for fault in verify_set(str(root / "images" / split))]


def totals(root: Path) -> dict[str, int]:
    both = [json.loads((root / "images" / split / "manifest.json").read_text())["totals"] for split in SPLITS]
    return {key: sum(one[key] for one in both) for key in both[0]}


def test_documents_go_and_do_not_come_back(root: Path, tmp_path: Path) -> None:
    before, offered = contents(root), totals(root)["offered"]
    lines = list(remove(str(root), GONE, []))
    assert len([line for line in lines if "samples removed" in line]) >= 2
    assert ids_in(root) == sorted(set(IDS) - set(GONE)) and faults(root) == []
    assert totals(root)["offered"] == offered == totals(root)["written"] + totals(root)["filtered"]
    untouched = [name for name in before if contents(root).get(name) == before[name]]
    assert any(name.endswith(".tar") for name in untouched), "shards without them stay"
    after = contents(root)
    list(remove(str(root), GONE, []))
    assert contents(root) == after
    for path in (root / "images").glob("*/00*.json"):
        path.unlink()  # all receipts are lost: everything is rendered anew
    render_here(text_spec(tmp_path / "texts"), root)
    assert ids_in(root) == sorted(set(IDS) - set(GONE))
    assert all(contents(root)[name] == after[name] for name in after if name.endswith(".tar"))


def test_single_samples_and_whole_shards_go(root: Path) -> None:
    shards = sorted((root / "images/train").glob("*.tar"))
    first = [item["__key__"] for item in open_shards(str(root / "images/train"))][:4]
    list(remove(str(root), [], [f"train/0/{key}" for key in first]))
    assert faults(root) == [] and not shards[0].exists()
    manifest = json.loads((root / "images/train/manifest.json").read_text())
    assert manifest["emptied"] == [shards[0].name] and len(manifest["shardlist"]) == len(shards) - 1
    with pytest.raises(ValueError, match="write SPLIT/UNIT/KEY"):
        list(remove(str(root), [], ["doc3"]))


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("arXiv:2401.00001v2", "2401.00001"),
        ("2401-00001", "2401.00001"),
        ("2401.00001.pdf", "2401.00001v3"),
        (" 2401/00001 ", "2401.00001"),
        ("hep-th/0703012", "hep-th0703012"),
        ("hep-th-0703012v1", "hep-th0703012"),
        ("math.GT/0309136", "math0309136"),
        ("argon2.pdf", "argon2"),
        ("./argon2.pdf", "argon2"),
        ("\ufeff2401.00001", "2401.00001"),
        ("arXiv:2401.00001v2 [cs.CL]", "2401.00001"),
        ("https://arxiv.org/abs/2401.00001v1", "2401.00001"),
        ("http://www.arxiv.org/pdf/hep-th/0703012.pdf", "hep-th0703012"),
        ("doi:10.48550/arXiv.2401.00001", "2401.00001"),
        ("https://doi.org/10.48550/arXiv.2401.00001", "2401.00001"),
        ("2401_00001V10", "2401.00001"),
        ("HEP-TH/0703012", "hep-th0703012"),
        ("cond-mat.mes-hall/9901001", "cond-mat9901001"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_ids_are_compared_as_people_write_them(written: str, stored: str) -> None:
    assert normalised_id(written) == normalised_id(stored)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("doc1", "doc10"),
        ("doc-1", "doc1"),
        ("2401.00001", "2401.00002"),
        ("a/1", "a1"),
        ("img_1234567", "img-1234567"),
        ("1234-5678", "1234_5678"),
    ],
)
def test_ids_of_other_documents_are_others(one: str, other: str) -> None:
    assert normalised_id(one) != normalised_id(other)


def test_what_matched_nothing_is_named_at_the_end_and_not_recorded(root: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("doc3.jsonl\nunheard-of\n\n")
    command = ["remove", str(root), "--ids", str(tmp_path / "ids")]
    first = CliRunner().invoke(app, command)
    assert "doc3.jsonl: doc3\n" in first.output and "doc3" not in ids_in(root)
    assert isinstance(first.exception, ValueError) and str(first.exception).endswith(": unheard-of")
    assert "unheard-of" not in "".join(path.read_text() for path in (root / "images/removed").iterdir())
    again = CliRunner().invoke(app, command)
    assert "doc3.jsonl: doc3" in again.output and isinstance(again.exception, ValueError)
    with pytest.raises(ValueError, match="train/0/no_such"):
        list(remove(str(root), [], ["train/0/no_such"]))


def test_a_set_whose_plan_is_lost_is_named_and_nothing_is_removed_beside_it(root: Path, tmp_path: Path) -> None:
    """Of validation pictures without a plan `dnd verify` said nothing, and a takedown that it matched nothing."""
    before = contents(root)
    (root / "images/val/plan.jsonl").unlink()
    left = contents(root)
    said = CliRunner().invoke(app, ["verify", str(root)])
    assert said.exit_code == 1 and "images/val: plan.jsonl is lost; run the stage again" in said.output
    with pytest.raises(ValueError, match=r"images/val: plan\.jsonl is lost"):
        list(remove(str(root), GONE, []))
    assert contents(root) == left
    render_here(text_spec(tmp_path / "texts"), root)
    assert contents(root) == before and not faults(root)


def test_verify_names_what_was_removed_once_and_is_there(root: Path) -> None:
    (root / "images/removed").mkdir()
    (root / "images/removed/old.json").write_bytes(Removed(ids=("doc3.pdf",)).to_json())
    result = CliRunner().invoke(app, ["verify", str(root)])
    assert result.exit_code == 1 and "of doc3 was removed once and is there" in result.output, result.output
    list(remove(str(root), ["doc3"], []))
    assert CliRunner().invoke(app, ["verify", str(root)]).exit_code == 0
    (root / "images/removed/old.json").write_text("{")
    result = CliRunner().invoke(app, ["verify", str(root)])
    assert result.exit_code == 1 and "removed/old.json" in result.output and "2 shard sets" in result.output


def test_a_job_that_outlived_its_lease_takes_out_what_was_removed_meanwhile(root: Path) -> None:
    whole, offered = len(ids_in(root)), totals(root)["offered"]
    (root / "images/removed").mkdir()
    (root / "images/removed/meanwhile.json").write_bytes(Removed(ids=("doc3.pdf", "doc20")).to_json())
    plans = [read_plan(str(root / "images" / split)) for split in SPLITS]
    manifests = [remove_again(plan) for plan in plans if plan]
    assert any(manifests) and len(ids_in(root)) < whole and not {"doc3", "doc20"} & set(ids_in(root))
    assert totals(root)["offered"] == offered == totals(root)["written"] + totals(root)["filtered"]
    assert faults(root) == [] and CliRunner().invoke(app, ["verify", str(root)]).exit_code == 0
    assert [remove_again(plan) for plan in plans if plan] == [None, None]


def test_what_was_removed_meanwhile_is_taken_out_while_the_lease_is_held(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "images/removed").mkdir()
    (root / "images/removed/meanwhile.json").write_bytes(Removed(ids=("doc3",)).to_json())
    writers = list[str]()

    def seen(plan: Plan) -> Manifest | None:
        by = holder_of(str(root / "images"))
        writers.append(by.command if by else "nobody")
        return remove_again(plan)

    monkeypatch.setattr("pipeline.removal.remove_again", seen)
    RENDER.make(load_spec(root / "spec.yaml"), str(root), Workers())
    assert writers == ["dnd render"] * 2 and "doc3" not in ids_in(root) and holder_of(str(root / "images")) is None


def test_nothing_is_removed_while_a_job_writes(root: Path) -> None:
    before = contents(root)
    with hold(str(root / "images"), "dnd render", shared=True):
        during = contents(root)
        with pytest.raises(ValueError, match="`dnd render` writes here since"):
            list(remove(str(root), ["doc3"], []))
        assert contents(root) == during
    assert contents(root) == before
    list(remove(str(root), ["doc3"], []))
    assert "doc3" not in ids_in(root)


def test_what_shows_or_names_the_removed_is_said(root: Path) -> None:
    sheet = root / "look" / "images-train-000000.png"
    sheet.parent.mkdir()
    sheet.touch()
    said = list(remove(str(root), GONE, []))
    assert [line for line in said if line.startswith("look: ") and "dnd look" in line]
    assert not [line for line in said if line.startswith(("images/README.md", "report"))]


def _dies_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function be called so often, then ends the process as a SIGKILL would."""
    left = [count]

    def counted(*arguments: Any) -> Any:
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
        return function(*arguments)

    return counted


def _remove_and_die(root: str, name: str, count: int) -> None:
    setattr(storage, name, _dies_at(count, getattr(storage, name)))
    list(remove(root, GONE, []))


@pytest.mark.parametrize(("name", "count"), [("create", 3), ("write", 0), ("write", 2), ("delete", 0), ("delete", 3)])
def test_a_killed_removal_is_finished_by_the_next(root: Path, tmp_path: Path, name: str, count: int) -> None:
    shutil.copytree(root, tmp_path / "whole")
    list(remove(str(tmp_path / "whole"), GONE, []))
    child = multiprocessing.get_context("fork").Process(target=_remove_and_die, args=(str(root), name, count))
    child.start()
    child.join(120)
    assert child.exitcode == 9
    list(remove(str(root), GONE, []))
    assert contents(root) == contents(tmp_path / "whole") and faults(root) == []


def test_what_was_made_from_it_goes_also_behind_a_link_and_what_a_user_linked_stays(root: Path, tmp_path: Path) -> None:
    source = str(root / "images/train")
    album = tmp_path / "album"
    album.mkdir()
    (album / "photo").write_text("kept")
    for stage, folder in (("tokenize", "codes"), ("decode", "reconstructions/train")):
        identity = Identity(stage=stage)
        plan = plan_by_shards(str(tmp_path / "disk" / folder / "train"), identity, source, "train")
        for unit in plan.units():
            commit(plan.set_uri, plan.digest, unit.unit, [Sample("s", {"cls": b"0", "json": b"{}"})])
        (root / folder).parent.mkdir(exist_ok=True)
        (root / folder).symlink_to(tmp_path / "disk" / folder)
    (tmp_path / "disk/reconstructions/train/mine").symlink_to(album)
    lines = list(remove(str(root), GONE, []))
    assert any(line.startswith("codes/train: ") and "shards removed" in line for line in lines), lines
    assert any(line.startswith("reconstructions/train: removed") for line in lines), lines
    assert not list((tmp_path / "disk/reconstructions").rglob("*.tar"))
    assert (album / "photo").read_text() == "kept" and (root / "codes").is_symlink()
