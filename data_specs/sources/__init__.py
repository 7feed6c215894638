"""The kinds of sources: each is a class in a file of its own, known by its line here. See docs/sources.md."""

from data_specs.sources.arxiv import ArxivSource as ArxivSource
from data_specs.sources.docstrings import DocstringSource as DocstringSource
from data_specs.sources.images import ImageSource as ImageSource
from data_specs.sources.pdf import PdfSource as PdfSource
from data_specs.sources.text import TextSource as TextSource
from data_specs.sources.typeset import TypesetSource as TypesetSource
