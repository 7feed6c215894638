"""PDFs: files of a folder, or members of tars, which are listed as if each tar were a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from data_specs import storage
from data_specs.records import Document, FileInfo, Reason, Span
from data_specs.sources.listed import ListedSource, NotTaken
from data_specs.sources.names import is_hidden, relative, stem, without_packing
from data_specs.sources.tars import list_members


class PdfSource(ListedSource):
    """PDF documents: a folder, a tar or one file, by path or URI."""

    document_kind: ClassVar[Literal["pdf"]] = "pdf"

    kind: Literal["pdf"] = Field("pdf", description="what sort of source it is")

    def listing(self, classes: Mapping[str, int], not_taken: NotTaken) -> Iterator[Document]:
        for file in storage.list_files(self.uri):
            name = relative(self.uri, file.uri)
            if is_pdf(name):
                yield Document(stem(name), Span(file))
            elif without_packing(name).endswith(".tar"):
                yield from self._members(file, "" if file.uri == self.uri else f"{stem(name)}/", not_taken)
            elif is_pdf(without_packing(name)):
                reason = "packed; unpack it"
                yield Document(stem(name), Span(file), reason=Reason.TYPE_NOT_READ, detail=reason)
            else:
                not_taken.add(name)

    def _members(self, file: FileInfo, folder: str, not_taken: NotTaken) -> Iterator[Document]:
        for member in list_members(file):
            if is_pdf(member.name):
                reason = Reason.NOT_A_FILE if member.start is None else None
                yield Document(folder + stem(member.name), member.span(file), reason=reason)
            else:
                not_taken.add(folder + member.name)


def is_pdf(name: str) -> bool:
    """Return whether a name is that of a PDF."""
    return name.lower().endswith(".pdf") and not is_hidden(name)
