"""Text that others wrote is shown and never acts: in a terminal, a log, Markdown."""

from __future__ import annotations

import io
import logging

import pytest
from markdown_it import MarkdownIt

from data_specs.text import PrintableFormatter, markdown, printable

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
