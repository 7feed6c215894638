"""The registry: what commands, tables and removals say of stages is what the stages say; a new one is one file."""

from __future__ import annotations

import inspect
from pathlib import Path

import command
import pytest
from sets import contents, render_here, text_spec, write_texts

import infra.stages  # noqa: F401
from data_specs import open_shards
from data_specs.manifest import read_manifest
from data_specs.spec import load_spec
from data_specs.verify import verify_set
from infra.commands.stages import command_of
from infra.demo import run_all
from pipeline.job import Render
from pipeline.stages import Option, leased_folder, registered
from pipeline.workers import Workers

HERE = Path(__file__).parent


def dnd(*arguments: object) -> str:
    """What the command says with the stage that counts words, which is one import; it must end well."""
    done = command.dnd(*arguments, imports=["word_count"])
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_stages_stand_behind_what_they_read() -> None:
    names = [stage.name for stage in registered()]
    assert {"render", "train-tokenizer", "tokenize", "train", "sample", "decode", "reconstruct"} <= set(names)
    for stage in registered():
        assert all(names.index(read) < names.index(stage.name) for read in stage.reads)


def test_all_stages_are_refused_before_any_where_lpips_has_no_weights(tmp_path: Path) -> None:
    spec = load_spec("imagenet_16x16x2", ["tokenizer.lpips_weights=absent"])
    with pytest.raises(ValueError, match="absent"):
        run_all(spec, str(tmp_path / "root"), Workers(), 1)
    assert not (tmp_path / "root").exists()


def test_an_option_takes_numbers_from_the_least_that_it_says() -> None:
    class Counted(Render):
        options = (Option("channel", "which one", 0, int, least=0), Option("times", "how often", 2, int))

    wanted = {"channel": 0, "times": 1}
    parameters = inspect.signature(command_of(Counted())).parameters
    assert {name: parameters[name].annotation.__metadata__[0].min for name in wanted} == wanted


def test_the_readme_has_a_row_for_each_stage() -> None:
    rows = [line for line in (HERE.parent.parent / "README.md").read_text().splitlines() if line.startswith("| `dnd ")]
    for stage in registered():
        assert any(row.startswith(f"| `dnd {stage.name}") and f"`{stage.makes}" in row for row in rows), stage.name


def test_the_table_of_the_architecture_is_the_registry() -> None:
    text = (HERE.parent.parent / "docs/architecture.md").read_text()
    rows = [f"| {stage.name} | `{stage.makes}` | {', '.join(stage.reads)}".rstrip() + " |" for stage in registered()]
    assert "\n".join(rows) in text


def test_a_stage_of_ones_own_has_a_command_runs_on_ray_resumes_and_is_taken_back(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    write_texts(tmp_path / "texts/a.jsonl", [f"doc{number}" for number in range(12)])
    root, spec = tmp_path / "run", text_spec(tmp_path / "texts")
    render_here(spec, root)
    said = dnd("count-words", "--root", root, "--workers", 1, "--longest", 3)
    assert "words/train: " in said and "words/val: " in said
    texts = {item["__key__"]: item["json"]["text"] for item in open_shards(str(root / "images/train"))}
    counts = {item["__key__"]: item["json"]["counted"] for item in open_shards(str(root / "words/train"))}
    assert counts == {key: len(text.split()) for key, text in texts.items()}
    assert list(verify_set(str(root / "words/train"))) == []
    assert "words/train: 3/3 units done" in dnd("status", root)
    assert "count-words" in dnd("submit", "--root", root, "--on", "local", "--stage", "count-words", "--dry-run")
    before = contents(root, "words")
    dnd("count-words", "--root", root, "--longest", 3)
    assert contents(root, "words") == before
    key, shard = next(iter(texts)), read_manifest(str(root / "words/train/manifest.json")).shardlist[0]
    (tmp_path / "gone").write_text(f"train/0/{key}\n")
    assert "words/train: 1 shards removed; run `dnd count-words`" in dnd("remove", root, "--samples", tmp_path / "gone")
    assert not (root / "words/train" / shard.url).exists()
    dnd("count-words", "--root", root, "--workers", 0, "--longest", 3)
    assert [item["__key__"] for item in open_shards(str(root / "words/train"))] == list(texts)[1:]
    assert [fault for split in ("train", "val") for fault in verify_set(str(root / "words" / split))] == []


def test_a_set_at_an_address_of_its_own_is_leased_there() -> None:
    named = {"images/train": "images", "samples/cold/codes": "samples/cold", "s3://b/x/images": "s3://b/x"}
    for name, folder in (named | {"/elsewhere/x/images": "/elsewhere/x"}).items():
        assert leased_folder(name) == folder
