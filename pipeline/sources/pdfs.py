"""PDFs: files of a folder, or members of tars, which are listed as if each tar were a folder."""

from __future__ import annotations

from collections.abc import Iterator

from data_specs import storage
from data_specs.records import Document
from data_specs.spec import PdfSource
from pipeline.sources.document import relative, stem
from pipeline.sources.tars import members_of


def pdf_documents(source: PdfSource) -> Iterator[Document]:
    """Every .pdf under a folder or in its .tar files; ids are names without .pdf, in tars behind the tar's."""
    for file in storage.list_files(source.uri):
        name = relative(source.uri, file.uri)
        if name.lower().endswith(".pdf"):
            yield Document(stem(name), file)
        elif name.lower().endswith(".tar"):
            folder = "" if file.uri == source.uri else f"{stem(name)}/"
            for member in members_of(file):
                if member.name.lower().endswith(".pdf"):
                    yield Document(folder + stem(member.name), file, member.start, member.size)
