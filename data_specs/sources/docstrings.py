"""Prose that every machine has: the documentation strings of the installed Python, cut into passages."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sysconfig
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from data_specs import storage
from data_specs.source import Source
from data_specs.sources.text import TextSource

FILES = 1500  # files read at most; the standard library alone has about 700 with prose
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")  # where statements hold others


class DocstringSource(Source):
    """Passages cut from the documentation strings of the installed Python; written to ROOT/inputs when planned."""

    document_kind: ClassVar[Literal["text"]] = "text"
    synthetic = True

    kind: Literal["docstrings"] = Field("docstrings", description="what sort of source it is")
    passages: int = Field(2000, ge=1, description="how many")
    min_words: int = Field(20, ge=1, description="words of a passage, at least")
    max_words: int = Field(100, ge=1, description="words of a passage, at most")
    vocabulary: int | None = Field(None, ge=2, description="keep only the most frequent words of the prose")
    markdown: bool = Field(False, description="three of four passages with a heading, a list or both, as Markdown")

    def prepare(self, inputs_uri: str) -> Source:
        """Write the passages as JSON Lines (id, text) and return their source; what is there already is kept."""
        name = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        uri = storage.join(inputs_uri, f"docstrings-{name}.jsonl")
        if not storage.exists(uri):
            lines = (json.dumps({"id": f"doc-{n:06d}", "text": text}) for n, text in enumerate(passages(self)))
            storage.create(uri, ("\n".join(lines) + "\n").encode())
        return TextSource(uri=storage.absolute(uri), format="markdown" if self.markdown else "plain")


def passages(source: DocstringSource) -> list[str]:
    """Return source.passages passages of min_words to max_words words.

    With a vocabulary of V, each is drawn word by word from the V most frequent words and the pairs seen in the prose,
    so that a small model can learn to spell all of them; else passages are the prose itself, in order.
    """
    if not (sentences := prose()):
        raise ValueError("the installed Python has no documentation strings (python -OO?); use a text source")
    made = _frequent(sentences, source) if source.vocabulary else _running(sentences, source)
    if len(made) < source.passages:
        raise ValueError(f"the documentation strings give {len(made)} passages of {source.passages}: ask for fewer")
    return [_structured(text, number) for number, text in enumerate(made)] if source.markdown else made


@cache
def prose() -> list[list[str]]:
    """Return the words of the sentences in the standard library's docstrings, file by file in order of name."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in library.rglob("*.py") if "test" not in p.parts and "site-packages" not in p.parts)
    sentences = (_words(text) for path in files[:FILES] for text in _docstrings(path))
    return [words for words in sentences if len(words) >= 3]


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from re.split(r"\n\s*\n|(?<=[.!?])\s", ast.get_docstring(node) or "")
        for block in BLOCKS:  # ast.walk's order, without the expressions
            waiting.extend(getattr(node, block, ()))


def _words(text: str) -> list[str]:
    """Words of a sentence if it is prose: plain words with ordinary punctuation."""
    words = text.split()
    plain = [word for word in words if re.fullmatch(r"[A-Za-z]+(?:['-][a-z]+)?[.,;:]?", word)]
    return plain if len(plain) >= 0.9 * len(words) else []


def _structured(text: str, number: int) -> str:
    """Write a passage as Markdown: a paragraph, by turns alone, under a heading, before a list, or both."""
    words = text.split()
    heading = ""
    items = ""
    if number % 4 in (1, 3):
        heading = f"# {' '.join(words[:2])}\n\n"
        words = words[2:]
    if number % 4 in (2, 3):
        words, listed = words[: len(words) // 2], words[len(words) // 2 :]
        items = "".join(f"\n- {' '.join(listed[start : start + 3])}" for start in range(0, len(listed), 3))
    return f"{heading}{' '.join(words)}\n{items}"


def _running(sentences: list[list[str]], source: DocstringSource) -> list[str]:
    made: list[str] = []
    waiting: list[str] = []
    for words in sentences:
        waiting += words
        while len(waiting) >= source.max_words:
            made.append(" ".join(waiting[: source.max_words]))
            del waiting[: source.max_words]
        if len(waiting) >= source.min_words:
            made.append(" ".join(waiting))
            waiting = []
    return made[: source.passages]


def _frequent(sentences: list[list[str]], source: DocstringSource) -> list[str]:
    """Return passages of consecutive frequent words of the prose, joined until each is full."""
    clean = [[word.strip(".,;:").lower() for word in words] for words in sentences]
    counts = Counter(word for words in clean for word in words if len(word) >= 2)
    known = {word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: source.vocabulary]}
    words = [word for sentence in clean for word in sentence if word in known]
    made = list[str]()
    start = 0
    while len(made) < source.passages:
        length = source.min_words + int.from_bytes(hashlib.sha256(b"%d" % len(made)).digest()[:4], "big") % (
            source.max_words - source.min_words + 1
        )
        # Each pass over the prose starts one word later, so that no two passages are equal.
        passage = [words[(start + i) % len(words)] for i in range(length)]
        made.append(" ".join(passage))
        start += length
    return made
