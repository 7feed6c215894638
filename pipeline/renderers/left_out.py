"""A device of MuPDF that hands all on to another one, but for some texts: how a page looks, and reads, without them."""

from __future__ import annotations

from collections.abc import Callable, Container

from data_specs.mupdf import mupdf, pymupdf

EVERY_TEXT = range(1 << 30)
_CALLED_OTHERWISE = {"end_mask": "end_mask_tr", "begin_tile": "begin_tile_tid"}
_HANDED_ON = (
    *("fill_path", "stroke_path", "clip_path", "clip_stroke_path", "fill_shade", "fill_image", "fill_image_mask"),
    *("clip_image_mask", "pop_clip", "begin_mask", "end_mask", "begin_group", "end_group", "begin_tile", "end_tile"),
)
_TEXTS = ("fill_text", "stroke_text", "clip_text", "clip_stroke_text", "begin_metatext", "end_metatext")


class TextLeftOut(mupdf.FzDevice2):  # type: ignore[misc]
    """Hands on to `target` what is drawn on it, but for the texts whose numbers, in the order of painting, are named.

    A replacement (/ActualText: what a file says that some texts stand for) is handed on where its number is named.
    `bounds` are those of all texts, in the order of their numbers; `replaced` the numbers that each replacement is for.
    """

    def __init__(self, target: mupdf.FzDevice, left_out: Container[int], replacements: Container[int] = ()) -> None:
        super().__init__()
        self.target = target
        self.left_out = left_out
        self.replacements = replacements
        self.bounds = list[tuple[float, float, float, float]]()
        self.replaced = list[range]()
        self.open = list[int | None]()  # numbers of the replacements that have begun; None for other marks
        self.nothing = mupdf.fz_new_path()
        for name in (*_HANDED_ON, *_TEXTS):
            getattr(self, f"use_virtual_{name}")()

    def is_left_out(self, text: mupdf.fz_text, stroke: mupdf.fz_stroke_state | None, matrix: mupdf.fz_matrix) -> bool:
        """Return whether the text that comes now is left out, and note its bounds."""
        area = mupdf.ll_fz_bound_text(text, stroke, matrix)
        self.bounds.append((area.x0, area.y0, area.x1, area.y1))
        return len(self.bounds) - 1 in self.left_out

    def fill_text(self, _: mupdf.fz_context, text: mupdf.fz_text, matrix: mupdf.fz_matrix, *how: object) -> None:
        if not self.is_left_out(text, None, matrix):
            mupdf._mupdf.ll_fz_fill_text(self.target.m_internal, text, matrix, *how)  # mupdf's own takes no pointer

    def stroke_text(
        self,
        _: mupdf.fz_context,
        text: mupdf.fz_text,
        stroke: mupdf.fz_stroke_state,
        matrix: mupdf.fz_matrix,
        *how: object,
    ) -> None:
        if not self.is_left_out(text, stroke, matrix):
            mupdf.ll_fz_stroke_text(self.target.m_internal, text, stroke, matrix, *how)

    def clip_text(
        self, _: mupdf.fz_context, text: mupdf.fz_text, matrix: mupdf.fz_matrix, scissor: mupdf.fz_rect
    ) -> None:
        if self.is_left_out(text, None, matrix):
            self._clip_all(matrix, scissor)
        else:
            mupdf.ll_fz_clip_text(self.target.m_internal, text, matrix, scissor)

    def clip_stroke_text(
        self,
        _: mupdf.fz_context,
        text: mupdf.fz_text,
        stroke: mupdf.fz_stroke_state,
        matrix: mupdf.fz_matrix,
        scissor: mupdf.fz_rect,
    ) -> None:
        if self.is_left_out(text, stroke, matrix):
            self._clip_all(matrix, scissor)
        else:
            mupdf.ll_fz_clip_stroke_text(self.target.m_internal, text, stroke, matrix, scissor)

    def begin_metatext(self, _: mupdf.fz_context, meta: int, text: str) -> None:
        is_replacement = meta == mupdf.FZ_METATEXT_ACTUALTEXT
        self.open.append(len(self.replaced) if is_replacement else None)
        if is_replacement:
            self.replaced.append(range(len(self.bounds), len(self.bounds)))
        if self.open[-1] in self.replacements:
            mupdf.ll_fz_begin_metatext(self.target.m_internal, meta, text)

    def end_metatext(self, _: mupdf.fz_context) -> None:
        number = self.open.pop()
        if number is not None:
            self.replaced[number] = range(self.replaced[number].start, len(self.bounds))
        if number in self.replacements:
            mupdf.ll_fz_end_metatext(self.target.m_internal)

    def _clip_all(self, matrix: mupdf.fz_matrix, scissor: mupdf.fz_rect) -> None:
        mupdf.ll_fz_clip_path(self.target.m_internal, self.nothing.m_internal, 0, matrix, scissor)

    def run(self, drawing: pymupdf.DisplayList) -> None:
        """Draw a display list on this device, and close both."""
        everywhere = mupdf.FzRect(mupdf.FzRect.Fixed_INFINITE)
        mupdf.fz_run_display_list(drawing.this, self, mupdf.FzMatrix(), everywhere, mupdf.FzCookie())
        mupdf.fz_close_device(self)
        mupdf.fz_close_device(self.target)


def _handing_on(name: str) -> Callable[..., object]:
    call: Callable[..., object] = getattr(mupdf, f"ll_fz_{_CALLED_OTHERWISE.get(name, name)}")

    def hand_on(device: TextLeftOut, _: mupdf.fz_context, *arguments: object) -> object:
        return call(device.target.m_internal, *arguments)

    return hand_on


for _name in _HANDED_ON:
    setattr(TextLeftOut, _name, _handing_on(_name))
