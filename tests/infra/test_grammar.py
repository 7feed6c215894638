"""One grammar: ROOT and SPEC stand in the same place in every command, --set means one thing, dashes everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from data_specs.records import Identity, RangeUnit
from data_specs.root import record_spec
from data_specs.spec import load_spec
from data_specs.units import write_plan
from infra.cli import app
from infra.commands.options import RootCommand
from pipeline.stages import registered


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(words, command) of every command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_keeps_to_the_grammar(words: str) -> None:
    command = COMMANDS[words]
    arguments = [param.name for param in command.params if param.param_type_name == "argument"]
    shown = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    options = {name: param for param in shown for name in param.opts}
    assert [name for name in options if "_" in name] == []
    if "spec" in arguments:
        assert arguments == ["spec"]
        assert "--root" in options or words.startswith("bench "), "only benchmarks take sizes from no root"
    if "root" in arguments:
        assert arguments[0] == "root" and isinstance(command, RootCommand)
    if "--set" in options:
        assert options["--set"].multiple and "dotted key" in options["--set"].help


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A planned set, and a spec."""
    write_plan(
        str(tmp_path / "images/train"), "0" * 64, Identity(stage="render"), [RangeUnit(unit=0, first=0, count=1)]
    )
    record_spec(load_spec("demo"), str(tmp_path), "images", ("render",))
    return tmp_path


def test_a_root_stands_first_or_behind_its_option(root: Path) -> None:
    for words in ((root,), ("--root", root), (f"--root={root}",), ("--json", "--root", root), (root, "--json")):
        assert "images/train" in run("status", *words)


def test_status_for_programs(root: Path) -> None:
    told = json.loads(run("status", root, "--json"))
    assert [(one["name"], one["units"], one["done"]) for one in told["sets"]] == [("images/train", 1, 0)]
    assert told["trainings"] == told["writers"] == told["faults"] == []


def test_underscores_are_dashes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--deepspeed_config", "x.json", "--root", str(tmp_path)])
    assert "there is none yet" in str(result.exception)


def test_a_spec_is_the_roots_own_where_none_is_named(root: Path) -> None:
    assert run("spec", "--root", root).startswith("# demo: all keys")
    for words in (["memory"], ["train", str(root), "--root", str(root)]):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, ValueError) and "--root" in str(result.exception)


def test_the_help_of_a_stage_names_its_keys() -> None:
    for stage in registered():
        said = "".join(run(stage.name, "--help").split())
        assert stage.keys and all(key.partition(".")[0] + "." in said or key in said for key in stage.keys), stage.name
    assert "sample.temperature" in run("sample", "--help") and "render.crop_size" in run("render", "--help")


def test_compare_shows_curves_and_what_differs(tmp_path: Path) -> None:
    for name, size, values in (("a", 1300, (4.0, 2.0, 1.0)), ("b", 2600, (4.0, 3.0))):
        record_spec(load_spec("demo", [f"train.steps={size}"]), str(tmp_path / name), "transformer", ("train",))
        log_rows = [{"step": 100 * number, "bits_per_code": value} for number, value in enumerate(values)]
        (tmp_path / name / "transformer/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log_rows))
    told = json.loads(run("compare", tmp_path / "a", tmp_path / "b", "--json"))
    assert told["spec"] == [{"key": "train.steps", "a": "1300", "b": "2600"}]
    assert told["curves"] == [
        {"name": "transformer: bits per code", "a": [[0, 4.0], [100, 2.0], [200, 1.0]], "b": [[0, 4.0], [100, 3.0]]}
    ]
    said = run("compare", tmp_path / "a", tmp_path / "b")
    bars = [line.split()[1] for line in said.splitlines() if line.startswith("    ")]
    assert bars[0][0] == bars[1][0] == "█" and bars[0][-1] == "▁" and len(bars[0]) == 48 and len(bars[1]) == 25
    assert "1 at step 200" in said and "train.steps" in said and "steps 0 to 200, from 1 to 4" in said


def test_what_is_no_root_is_not_compared(tmp_path: Path, root: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(root), str(tmp_path / "none")])
    assert isinstance(result.exception, ValueError) and "neither a spec.yaml nor a result" in str(result.exception)
