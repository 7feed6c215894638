"""The one way out for text that others wrote (names, licences, titles, reasons): to a terminal, a log or Markdown.

HTML is written by Jinja's autoescape. What is shown is never longer than one line, and nothing in it acts.
"""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from typing import TextIO

_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~<>&]|:(?=//)|^[#+\-=](?=.)|(?<=^\d)[.)]|(?<=^\d\d)[.)])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", ":": "&#58;"}  # no tag, no bare address that is made a link


def printable(text: str) -> str:
    """Write control characters, line breaks, marks of direction and lone surrogates of a text as escapes (`\\x1b`)."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def _shown(letter: str) -> str:
    acts = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii") if acts else letter


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Write text at once to stdout, or another file: each of its lines printable, whoever wrote what is in it."""
    print("\n".join(map(printable, text.split("\n"))), file=file or sys.stdout, end=end, flush=True)


def one_line(said: object, limit: int | None = None) -> str:
    """Return an error, or what a program said, in one line of at most `limit` characters."""
    return " ".join(str(said).split())[:limit]


def markdown(text: str) -> str:
    """Return the text as Markdown that shows it: no markup, link, picture or HTML in it takes effect."""
    return _MARKDOWN.sub(lambda found: _ENTITIES.get(found[1], f"\\{found[1]}"), printable(text))


def start_log() -> None:
    """Send warnings and errors of this process to stderr, a printable line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class PrintableFormatter(logging.Formatter):
    """A log's lines, each record on one line whatever its message holds; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)
