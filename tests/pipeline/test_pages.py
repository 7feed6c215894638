"""Words lie where the picture shows them, also on pages that are shown turned."""

from __future__ import annotations

import hostile_pdfs
import pymupdf
import pytest

from data_specs.spec import PageStyle
from pipeline.renderers.pages import _mupdf


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_boxes_of_a_turned_page_hold_its_ink(rotation: int) -> None:
    document = pymupdf.open(stream=hostile_pdfs.page(), filetype="pdf")
    document[0].set_rotation(rotation)
    [(_, page)] = _mupdf(document.tobytes(), PageStyle(dpi=72))
    assert not isinstance(page, str)
    image, words, _ = page
    assert words.texts == ["Hello,", "reader"]
    dark = image[..., 1] < 128
    inside = sum(dark[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].sum() for x0, y0, x1, y1 in words.boxes)
    assert dark.any() and inside == dark.sum()
