"""Pages of PDFs: rendered once each, cut at random places, with the words that the eye sees in every crop.

After the paper's arXiv-Image (section 4): A4 at 1260x1782 px, ten random 512 px crops a page. The engines are tried in
the spec's order, for each page. They may crash or hang: call only in a child (`pipeline.isolate`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

import numpy as np
from PIL import Image

from data_specs.records import InfoFields, Reason
from data_specs.sections import Filters, PageStyle, Render
from pipeline.filters import Observation, ink, script_of, taken_by
from pipeline.isolate import begin
from pipeline.png import from_plane, grey_plane, in_one_plane
from pipeline.renderers import NoPicture, Picture, UnreadableError, mupdf, pdfium, short
from pipeline.renderers.words import Page, ReadPage

ENGINES = {"mupdf": mupdf, "pdfium": pdfium}
ERRORS = mupdf.ERRORS + pdfium.ERRORS
OPENING = -1  # what comes before the pages
Ended = Mapping[int, Sequence[tuple[Reason, str]]]  # by page or OPENING: what ended the child, one entry an engine
NOTHING: Ended = MappingProxyType({})


def render_pdf(
    data: bytes, document_id: str, render: Render, seed: int, size: int, ended: Ended = NOTHING
) -> Iterator[Picture | NoPicture]:
    """Yield the crops of a PDF's pages; a page that fails with every engine, or is not wanted, is one NoPicture.

    Args:
        size: side of a picture, pixels; it is cut at the spec's crop_size.
        ended: what ended the child on a page before, one entry for each engine that shall not be tried on it again.

    Raises:
        UnreadableError: the document as a whole gives nothing: not a PDF, encrypted, or no page.
    """
    if b"%PDF-" not in data[:1024]:
        raise UnreadableError(Reason.NOT_A_PDF, "no %PDF- header")
    style = render.pages
    cut = render.crop_size or size
    number = -1
    with ExitStack() as stack:
        document = _Document(data, style.engines, ended, stack)
        for number in range(min(document.num_pages, style.max_pages)):
            suffix = f"-p{number:04d}"
            try:
                begin(number)
                page, engine = document.read(number, style)
                _check(page, render.filters, fallback=engine != style.engines[0])
            except UnreadableError as fault:
                yield NoPicture(suffix, fault.reason, fault.detail)
                continue
            about: InfoFields = {"engine": ENGINES[engine].NAME, "page": number}
            yield from _crops(page, f"{seed}/{document_id}/{number}", style, cut, size, suffix, about)
    if number < 0:
        raise UnreadableError(Reason.NO_PAGE)


class _Document:
    """A PDF in the engines that can open it; a page on which the first one fails is tried by the next."""

    def __init__(self, data: bytes, engines: Sequence[str], ended: Ended, stack: ExitStack) -> None:
        self.data = data
        self.stack = stack
        self.ended = ended
        self.order = engines
        self.engines = engines[len(ended.get(OPENING, ())) :]  # those that can open it, as far as is known
        self.opened = dict[str, tuple[int, ReadPage]]()
        self.num_pages = self._count()

    def _count(self) -> int:
        """Return the number of pages by the first engine that opens it; those before are not asked again."""
        faults = [UnreadableError(*why) for why in self.ended.get(OPENING, ())]
        while self.engines:
            try:
                return self._open(self.engines[0])[0]
            except UnreadableError as fault:
                faults.append(fault)
                self.engines = () if fault.reason == Reason.ENCRYPTED else self.engines[1:]
        raise faults[0]

    def _open(self, name: str) -> tuple[int, ReadPage]:
        if name not in self.opened:
            self.opened[name] = self.stack.enter_context(ENGINES[name].open_pdf(self.data))
        return self.opened[name]

    def read(self, number: int, style: PageStyle) -> tuple[Page, str]:
        """Return a page, and the engine that rendered it.

        Raises:
            UnreadableError: no engine can.
        """
        faults = list[str]()
        ended = self.ended.get(number, ())
        for name in self.engines:
            if name in self.order[: len(ended)]:
                continue
            try:
                return self._open(name)[1](number, style), name
            except ERRORS as error:
                if isinstance(error, UnreadableError) and error.reason == Reason.TOO_LARGE:
                    raise
                faults.append(f"{name}: {short(error)}")
        if ended:
            raise UnreadableError(*ended[-1])
        raise UnreadableError(Reason.PAGE_FAILED, "; ".join(faults))


def _check(page: Page, filters: Filters, fallback: bool) -> None:
    """Refuse a page that a repair left blank, or that the spec's filters take.

    A page without letters has no script, and stays.

    Raises:
        UnreadableError: the page is refused.
    """
    if (page.repaired or fallback) and ink(page.image) == 0:
        raise UnreadableError(Reason.BLANK_AFTER_REPAIR)
    script = script_of(" ".join(page.words.texts)) if filters.scripts else None
    if taken := taken_by(filters, Observation(page.pictured, page.words.trusted, script)):
        raise UnreadableError(*taken)


def _crops(
    page: Page, key: str, style: PageStyle, cut: int, size: int, suffix: str, about: InfoFields
) -> Iterator[Picture | NoPicture]:
    image = _on_white(page.image, style.fit)
    height, width = image.shape[:2]
    if height < cut or width < cut:
        yield NoPicture(suffix, Reason.PAGE_TOO_SMALL, f"{width}x{height} px at {style.dpi:g} dpi; a crop takes {cut}")
        return
    rng = random.Random(key)
    for number in range(style.crops):
        left = rng.randint(0, width - cut)
        top = rng.randint(0, height - cut)
        crop = image[top : top + cut, left : left + cut]
        words = page.words.within(left, top, cut, cut, page.marks)
        if len(words.texts) - words.cut.sum() < style.min_words:
            yield NoPicture(f"{suffix}-c{number:02d}", Reason.TOO_FEW_WORDS)
            continue
        seen: InfoFields = {**about, **words.fields(size / cut), "box": (left, top, left + cut, top + cut)}
        yield Picture(f"{suffix}-c{number:02d}", _reduced(crop, size, style), seen)


def _on_white(image: np.ndarray, fit: tuple[int, int] | None) -> np.ndarray:
    """Return a page [H, W, 3] with white below and beside it up to a width and height."""
    right, below = (max(0, side - has) for side, has in zip(fit or (0, 0), image.shape[1::-1], strict=True))
    if not right and not below:
        return image
    return in_one_plane(np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=255))


def _reduced(crop: np.ndarray, size: int, style: PageStyle) -> np.ndarray:
    """Reduce a crop to [size, size, 3]; a grey one in one plane, which gives each channel as three would."""
    plane = grey_plane(crop)
    small = np.ascontiguousarray(crop) if plane is None else plane
    if len(crop) != size:
        how = Image.Resampling[style.reduction.upper()]
        small = np.asarray(Image.fromarray(small).resize((size, size), how))
    return small if plane is None else from_plane(small)
