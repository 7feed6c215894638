"""PDFs typeset from the documentation strings: two columns, headings, tables and formulas, equal bytes every time."""

from __future__ import annotations

import hashlib
import html
import io

import pymupdf

from data_specs import storage
from data_specs.spec import DocstringSource, TypesetSource
from pipeline.sources.docstrings import passages

PAGE = pymupdf.Rect(0, 0, 595, 842)
COLUMNS = (pymupdf.Rect(50, 50, 290, 792), pymupdf.Rect(305, 50, 545, 792))
CSS = "body {font-family: sans-serif; font-size: 10px} h2 {font-size: 13px} td {border: 1px solid black; padding: 2px}"
FORMULAS = (
    "E = m c<sup>2</sup>",
    "x<sub>1</sub> + x<sub>2</sub> = 2 y",
    "a<sup>2</sup> + b<sup>2</sup> = c<sup>2</sup>",
)
PASSAGES_EACH = 24


def write_documents(source: TypesetSource, inputs_uri: str) -> str:
    """Writes the PDFs into a folder under `inputs_uri` and returns its URI; those already there are kept."""
    folder = storage.join(inputs_uri, f"typeset-{hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:8]}")
    names = [storage.join(folder, f"typeset-{number:04d}.pdf") for number in range(source.documents)]
    if all(map(storage.exists, names)):
        return folder
    texts = passages(
        DocstringSource(
            kind="docstrings",
            passages=source.documents * PASSAGES_EACH,
            min_words=20,
            max_words=60,
            vocabulary=source.vocabulary,
        )
    )
    for number, uri in enumerate(names):
        of_document = texts[number * PASSAGES_EACH : (number + 1) * PASSAGES_EACH]
        storage.create_if_absent(uri, typeset(of_document, number))
    return folder


def typeset(texts: list[str], number: int) -> bytes:
    """One PDF of A4 pages in two columns; every third passage brings a heading, a table or a formula."""
    story = pymupdf.Story(html=_html(texts, number), user_css=CSS)
    file = io.BytesIO()
    writer, more = pymupdf.DocumentWriter(file), 1
    while more:
        device = writer.begin_page(PAGE)
        for column in COLUMNS:
            if more:
                more, _ = story.place(column)
                story.draw(device)
        writer.end_page()
    writer.close()
    with pymupdf.open(stream=file.getvalue()) as document:
        document.set_metadata({})
        return document.tobytes(garbage=3, deflate=True, no_new_id=True)  # type: ignore[no-any-return]


def _html(texts: list[str], number: int) -> str:
    parts = []
    for place, text in enumerate(texts):
        words = html.escape(text).split()
        if place % 3 == 0:
            parts.append(f"<h2>{' '.join(words[:4])}</h2>")
        parts.append(f"<p>{' '.join(words)}</p>")
        if place % 6 == 2:
            parts.append(f"<p>{FORMULAS[(number + place) % len(FORMULAS)]}</p>")
        if place % 6 == 5:
            rows = (f"<tr><td>{a}</td><td>{b}</td></tr>" for a, b in zip(words[:8:2], words[1:8:2]))
            parts.append(f"<table>{''.join(rows)}</table>")
    return f"<body>{''.join(parts)}</body>"
