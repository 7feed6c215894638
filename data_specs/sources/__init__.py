"""The kinds of sources: each is a class in a file of its own, known by its line here. See docs/sources.md."""

from data_specs.sources.arxiv import ArxivSource
from data_specs.sources.docstrings import DocstringSource
from data_specs.sources.images import ImageSource
from data_specs.sources.pdf import PdfSource
from data_specs.sources.text import TextSource
from data_specs.sources.typeset import TypesetSource

__all__ = ["ArxivSource", "DocstringSource", "ImageSource", "PdfSource", "TextSource", "TypesetSource"]
