"""PDFs typeset from the documentation strings: two columns, headings, tables and formulas, equal bytes every time."""

from __future__ import annotations

import hashlib
import html
import io
from typing import ClassVar, Literal

from pydantic import Field

from data_specs import storage
from data_specs.source import Source
from data_specs.sources.docstrings import DocstringSource, passages
from data_specs.sources.pdf import PdfSource

PAGE = (0, 0, 595, 842)  # points, A4
COLUMNS = ((50, 50, 290, 792), (305, 50, 545, 792))
CSS = "body {font-family: sans-serif; font-size: 10px} h2 {font-size: 13px} td {border: 1px solid black; padding: 2px}"
FORMULAS = (
    "E = m c<sup>2</sup>",
    "x<sub>1</sub> + x<sub>2</sub> = 2 y",
    "a<sup>2</sup> + b<sup>2</sup> = c<sup>2</sup>",
)
PASSAGES_EACH = 24


class TypesetSource(Source):
    """PDFs typeset from the docstrings (columns, headings, tables, formulas); written to ROOT/inputs when planned."""

    document_kind: ClassVar[Literal["pdf"]] = "pdf"
    synthetic = True

    kind: Literal["typeset"] = Field("typeset", description="what sort of source it is")
    documents: int = Field(20, ge=1, description="how many PDFs")
    vocabulary: int | None = Field(None, ge=2, description="keep only the most frequent words of the prose")

    def prepare(self, inputs_uri: str) -> Source:
        """Write the PDFs and return their source; those already there are kept."""
        folder = storage.join(inputs_uri, f"typeset-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}")
        names = [storage.join(folder, f"typeset-{number:04d}.pdf") for number in range(self.documents)]
        if not all(map(storage.exists, names)):
            prose = DocstringSource(
                passages=self.documents * PASSAGES_EACH, min_words=20, max_words=60, vocabulary=self.vocabulary
            )
            texts = passages(prose)
            for number, uri in enumerate(names):
                of_document = texts[number * PASSAGES_EACH : (number + 1) * PASSAGES_EACH]
                storage.create(uri, typeset(of_document, number))
        return PdfSource(uri=storage.absolute(folder))


def typeset(texts: list[str], number: int) -> bytes:
    """Return one PDF of A4 pages in two columns; every third passage brings a heading, a table or a formula."""
    from data_specs.mupdf import pymupdf

    story = pymupdf.Story(html=_html(texts, number), user_css=CSS)
    file = io.BytesIO()
    writer = pymupdf.DocumentWriter(file)
    more = 1
    while more:
        device = writer.begin_page(pymupdf.Rect(PAGE))
        for column in COLUMNS:
            if more:
                more, _ = story.place(pymupdf.Rect(column))
                story.draw(device)
        writer.end_page()
    writer.close()
    with pymupdf.open(stream=file.getvalue()) as document:
        document.set_metadata({})
        return document.tobytes(garbage=3, deflate=True, no_new_id=True)  # type: ignore[no-any-return]


def _html(texts: list[str], number: int) -> str:
    parts = []
    for index, text in enumerate(texts):
        words = html.escape(text).split()
        if index % 3 == 0:
            parts.append(f"<h2>{' '.join(words[:4])}</h2>")
        parts.append(f"<p>{' '.join(words)}</p>")
        if index % 6 == 2:
            parts.append(f"<p>{FORMULAS[(number + index) % len(FORMULAS)]}</p>")
        if index % 6 == 5:
            rows = (f"<tr><td>{a}</td><td>{b}</td></tr>" for a, b in zip(words[:8:2], words[1:8:2]))
            parts.append(f"<table>{''.join(rows)}</table>")
    return f"<body>{''.join(parts)}</body>"
