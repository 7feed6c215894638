"""Text that others wrote is shown and never acts: in a terminal, a log, Markdown."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from data_specs.progress import Progress
from data_specs.text import PrintableFormatter, markdown, printable, say
from infra.cli import app

HOSTILE = [
    "\x1b[2J\x1b[31mall gone",
    "CC0\nimages/train: 9/9 units done, 0 failed",
    "a\rb",
    "gpj.\u202eexe",
    "\ud800 alone",
    "![x](https://tracker.example/a.png)",
    "<img src=x onerror=alert(1)>",
    "https://example.org/",
    "# heading | cell `code` *bold* &lt;",
    "- item\n1. item",
    "\u2028line",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_acts_in_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and len(shown.splitlines()) == 1
    shown.encode("utf-8")
    assert printable(shown) == shown


def test_letters_of_all_scripts_stay() -> None:
    for text in ("Grüße", "数学", "שלום", "a b", "naïve–“quoted”", "x² ≤ 3"):
        assert printable(text) == text


@pytest.mark.parametrize("text", [*HOSTILE, "plain words", "C++ & friends_", "1. first", "+ plus", "~~gone~~"])
def test_markdown_shows_the_text_itself(text: str) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(f"before {markdown(text)} after")
    inline = tokens[1]
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    kinds = {child.type for child in inline.children or []}
    assert kinds <= {"text", "text_special"}, kinds
    assert "".join(child.content for child in inline.children or []) == f"before {printable(text)} after"


@pytest.mark.parametrize("text", ["# a", "- a", "+ a", "= a", "1. a", "12) a", "> a", "| a |", "CC-BY-4.0", "a (b) c!"])
def test_markdown_begins_no_block(text: str) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[1].children or []) == text


def test_plain_names_stay_readable() -> None:
    for text in ("CC-BY-4.0", "J. Doe (ed.)", "2401.00001"):
        assert markdown(text) == text


def test_a_log_line_cannot_be_forged() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("test_text")
    log.addHandler(handler)
    log.warning("unit %d: %s", 3, "x\nERROR root: all is lost")
    log.removeHandler(handler)
    assert stream.getvalue() == "WARNING test_text: unit 3: x\\nERROR root: all is lost\n"


def test_what_is_said_keeps_its_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    say("a table\nof two lines \x1b[2J\r0 faults")
    Progress("render", 1, "units").finish("\x1b]0;title\x07")
    shown = capsys.readouterr()
    assert shown.out == "a table\nof two lines \\x1b[2J\\r0 faults\n"
    assert "\\x1b]0;title\\x07" in shown.err and shown.err.count("\n") == 1


def test_two_evaluations_side_by_side_do_not_act_in_a_terminal(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        facts = json.loads((Path(__file__).parents[1] / "train/evaluation/results/gfid-forced.json").read_text())
        facts |= {"figures": {"psnr\x1b[2J": 1.0}, "forced": [f"{name}\x1b]0;title\x07"]}
        (tmp_path / name / "evaluation/gfid.json").write_text(json.dumps(facts))
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "one"), str(tmp_path / "two")])
    assert result.exit_code == 0 and "psnr\\x1b[2J" in result.output and "\x1b" not in result.output, result.output


def test_labels_of_a_contact_sheet_are_printable() -> None:
    from infra.look import draw_sheet

    shown, escaped = (draw_sheet(f"set {key}", [(f"doc {key}", [(None, key)])]) for key in ("a\u202eb", "a\\u202eb"))
    assert shown.tobytes() == escaped.tobytes()
