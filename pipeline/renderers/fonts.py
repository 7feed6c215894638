"""The fonts of rich text: those of the package pymupdf-fonts (SIL Open Font License and similar), and MuPDF's own.

What no family has is taken from the Noto fonts that MuPDF brings along; HarfBuzz, which it brings too, sets them all.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import pymupdf_fonts

from data_specs.mupdf import mupdf, pymupdf

FACES = {  # regular, bold, italic, bold italic
    "noto-sans": ("notos", "notosbo", "notosit", "notosbi"),
    "fira-go": ("figo", "figbo", "figit", "figbi"),
    "ubuntu": ("ubuntu", "ubuntubo", "ubuntuit", "ubuntubi"),
    "cascadia-mono": ("cascadia", "cascadiab", "cascadiai", "cascadiabi"),
    "space-mono": ("spacemo", "spacembo", "spacemit", "spacembi"),
    "ubuntu-mono": ("ubuntm", "ubuntmbo", "ubuntmit", "ubuntmbi"),
}
_OURS = "dnd:"  # what the names of our faces begin with, so that no document's font is one by chance
_named = dict[str, tuple[str, float | None]]()


def name_in_css(family: str, whole_pixels: float | None) -> str:
    """Return the name by which a style sheet gets a family; one that MuPDF has built in has it already.

    Its faces are opened once per process and given to MuPDF when it asks for them: in an archive they would be opened
    for every passage, and each of its letters drawn anew.

    Args:
        family: one of FACES, or of those that are built in.
        whole_pixels: the type size, where every letter is to be a whole number of pixels wide in it.
    """
    if family not in FACES:
        return family
    name = f"{_OURS}{family}" + (f"/{whole_pixels:g}" if whole_pixels else "")
    if not _named:
        mupdf.fz_install_load_system_font_funcs(_asked_for)
    _named[name] = family, whole_pixels
    return f'"{name}"'


def _asked_for(name: str, bold: int, italic: int, _exact: int) -> mupdf.FzFont | None:
    return _face(*_named[name], bold + 2 * italic).this if name in _named else None


def regular(family: str, whole_pixels: float | None) -> pymupdf.Font:
    """Return the face to measure a family's words with."""
    return _face(family, whole_pixels, 0) if family in FACES else _any_font()


@lru_cache(maxsize=256)
def _face(family: str, whole_pixels: float | None, number: int) -> pymupdf.Font:
    data = pymupdf_fonts.myfont(FACES[family][number])
    return pymupdf.Font(fontbuffer=data if whole_pixels is None else in_whole_pixels(data, whole_pixels))


@lru_cache(maxsize=16)
def characters(family: str) -> frozenset[int]:
    """Return the code points that every face of a family has; those of a built-in family are not known."""
    faces = [pymupdf.Font(fontbuffer=pymupdf_fonts.myfont(name)) for name in FACES.get(family, ())]
    return frozenset.intersection(*(frozenset(face.valid_codepoints()) for face in faces)) if faces else frozenset()


@lru_cache(maxsize=1 << 16)
def has_glyph(char: str, beside: str = "") -> bool:
    """Return whether MuPDF can draw a character with any font that it has.

    Args:
        char: one character; of a script of its own it is drawn wherever it stands.
        beside: the letter before it, whose font draws marks and signs that several scripts share (Arabic's comma).
    """
    if not beside:
        return bool(_any_font().has_glyph(ord(char), fallback=True))
    _, font = mupdf.fz_encode_character_with_fallback(_any_font().this, ord(beside), 0, 0)
    return bool(mupdf.fz_encode_character(font, ord(char)))


@lru_cache(maxsize=1)
def _any_font() -> pymupdf.Font:
    return pymupdf.Font(fontbuffer=pymupdf_fonts.myfont("notos"))


def in_whole_pixels(data: bytes, size: float) -> bytes:
    """Return a TrueType font whose letters are a whole number of pixels wide at a size, without kerning.

    As type on a screen: a letter has one shape wherever it stands, and not one for each quarter of a pixel.
    """
    font = bytearray(data)
    tables = dict[bytes, int]()
    for offset in range(12, 12 + 16 * struct.unpack_from(">H", font, 4)[0], 16):
        tag = bytes(font[offset : offset + 4])
        tables[tag] = struct.unpack_from(">I", font, offset + 8)[0]
        if tag in (b"GPOS", b"kern"):
            font[offset : offset + 4] = b"none"
    pixel = struct.unpack_from(">H", font, tables[b"head"] + 18)[0] / size
    for number in range(struct.unpack_from(">H", font, tables[b"hhea"] + 34)[0]):
        offset = tables[b"hmtx"] + 4 * number
        width = struct.unpack_from(">H", font, offset)[0]
        struct.pack_into(">H", font, offset, round(round(width / pixel) * pixel))
    return bytes(font)
