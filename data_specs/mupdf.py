"""PyMuPDF without the models of page layout: `from data_specs.mupdf import pymupdf` in place of `import pymupdf`.

PyMuPDF 2.0 imports pymupdf_layout and pymupdf4llm with itself, and those load an ONNX model that nothing here asks for:
0.9 of 1.0 s of CPU and 89 of 138 MB in each process that renders, of which a document that ends its process costs one.
"""

from __future__ import annotations

import sys

__all__ = ["mupdf", "pymupdf"]

_left_out = {"pymupdf.layout", "pymupdf4llm"} - sys.modules.keys()
for _name in _left_out:
    sys.modules[_name] = None  # type: ignore[assignment]  # PyMuPDF goes on without it
try:
    import pymupdf
    from pymupdf import mupdf
finally:
    for _name in _left_out:
        del sys.modules[_name]  # who wants them later may import them
