"""Words lie where the picture shows them, also on pages that are shown turned; filters take whole pages."""

from __future__ import annotations

import hostile_pdfs
import numpy as np
import pymupdf_fonts
import pytest
from PIL import Image

from data_specs.mupdf import pymupdf
from data_specs.sections import Filters, PageStyle, Render
from data_specs.sources import TypesetSource
from pipeline.renderers import NoPicture
from pipeline.renderers.pages import ENGINES, render_pdf


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_boxes_of_a_turned_page_hold_its_ink(rotation: int, engine: str) -> None:
    document = pymupdf.open(stream=hostile_pdfs.page(), filetype="pdf")
    document[0].set_rotation(rotation)
    with ENGINES[engine].open_pdf(document.tobytes()) as (num_pages, read_page):
        assert num_pages == 1
        image, words, *_ = read_page(0, PageStyle(dpi=72))
    assert words.texts == ["Hello,", "reader"]
    dark = image[..., 1] < 128
    inside = sum(dark[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].sum() for x0, y0, x1, y1 in words.boxes)
    assert dark.any() and inside == dark.sum()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("width", "height"), [(595, 842), (612, 792), (842, 595), (200, 2000)])
def test_pages_of_all_sizes_are_fitted_into_one(width: int, height: int, engine: str) -> None:
    """US Letter too comes to the published 1260 x 1782 px, and no word lies on what is added."""
    document = pymupdf.open()
    document.new_page(width=width, height=height).insert_text((20, 60), "Hello, reader", fontsize=12)
    style = PageStyle.model_validate({"fit": (1260, 1782), "engines": [engine], "crops": 1})
    with ENGINES[engine].open_pdf(document.tobytes()) as (_, read_page):
        page = read_page(0, style)
    scale = min(1260 / width, 1782 / height)
    assert page.image.shape[:2] == pytest.approx((height * scale, width * scale), abs=1.01)
    assert page.words.boxes[0, 0] == pytest.approx(20 * scale, abs=3)
    render = Render.model_validate(
        {"sources": [{"kind": "arxiv"}], "pages": style, "crop_size": 1260, "filters": {"min_ink": 0}}
    )
    (crop,) = render_pdf(document.tobytes(), "a", render, 0, 1260)
    assert not isinstance(crop, NoPicture) and crop.image.shape == (1260, 1260, 3)
    left, top, right, bottom = crop.about["box"]
    assert 0 <= left <= right <= 1261 and 0 <= top <= bottom <= 1783


def test_crops_are_reduced_by_the_filter_that_the_spec_says() -> None:
    document = pymupdf.open()
    document.new_page(width=300, height=300).insert_text((20, 60), "Hello, reader", fontsize=24)

    def crop(size: int, reduction: str) -> Image.Image:
        style = {"dpi": 72, "engines": ["mupdf"], "crops": 1, "reduction": reduction}
        tree = {"sources": [{"kind": "arxiv"}], "pages": style, "crop_size": 256, "filters": {"min_ink": 0}}
        (made,) = render_pdf(document.tobytes(), "a", Render.model_validate(tree), 0, size)
        assert not isinstance(made, NoPicture)
        return Image.fromarray(made.image)

    whole = crop(256, "bicubic")
    for reduction in ("bicubic", "bilinear"):
        expected = whole.resize((128, 128), Image.Resampling[reduction.upper()])
        np.testing.assert_array_equal(np.asarray(crop(128, reduction)), np.asarray(expected))


@pytest.mark.parametrize("engine", ["mupdf", "pdfium"])
def test_scanned_pages_and_other_scripts_are_filtered_where_the_spec_says_so(engine: str) -> None:
    document = pymupdf.open()
    latin = document.new_page()
    latin.insert_text((72, 72), "A page of Latin words")
    picture = latin.get_pixmap()
    russian = document.new_page()
    russian.insert_font("russian", fontbuffer=pymupdf_fonts.myfont("notos"))
    russian.insert_text((72, 72), "Страница русских слов", fontname="russian")
    scan = document.new_page()
    scan.insert_image(scan.rect, pixmap=picture)
    document.new_page().insert_image((72, 72, 172, 172), pixmap=picture)  # a figure on a page of its own

    def lost(**filters: object) -> dict[str, str]:
        render = Render(
            sources=[TypesetSource(kind="typeset", documents=1)],
            pages=PageStyle.model_validate({"dpi": 72, "crops": 1, "engines": [engine]}),
            filters=Filters.model_validate(filters),
        )
        made = list(render_pdf(document.tobytes(), "it", render, seed=0, size=64))
        assert len(made) == 4 and all(part.reason.kind == "filtered" for part in made if isinstance(part, NoPicture))
        return {part.suffix: part.reason for part in made if isinstance(part, NoPicture)}

    assert lost() == {}
    assert lost(scripts=["LATIN"]) == {"-p0001": "mostly in another script"}
    assert lost(scanned="drop") == {"-p0002": "scanned page"}
