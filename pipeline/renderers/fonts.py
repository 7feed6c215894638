"""The fonts of rich text: those of the package pymupdf-fonts (SIL Open Font License and similar), and MuPDF's own.

What no family has is taken from the Noto fonts that MuPDF brings along; HarfBuzz, which it brings too, sets them all.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import pymupdf_fonts

from data_specs.mupdf import pymupdf

FACES = {  # regular, bold, italic, bold italic
    "noto-sans": ("notos", "notosbo", "notosit", "notosbi"),
    "fira-go": ("figo", "figbo", "figit", "figbi"),
    "ubuntu": ("ubuntu", "ubuntubo", "ubuntuit", "ubuntubi"),
    "cascadia-mono": ("cascadia", "cascadiab", "cascadiai", "cascadiabi"),
    "space-mono": ("spacemo", "spacembo", "spacemit", "spacembi"),
    "ubuntu-mono": ("ubuntm", "ubuntmbo", "ubuntmit", "ubuntmbi"),
}
_RULE = "@font-face {{font-family: {0}; font-weight: {2}; font-style: {3}; src: url({1})}}"
_STYLES = (("normal", "normal"), ("bold", "normal"), ("normal", "italic"), ("bold", "italic"))


class Fonts(NamedTuple):
    """An archive of font files, the style sheet that names them, and the first of them, to measure words with."""

    archive: pymupdf.Archive
    css: str
    first: pymupdf.Font


@lru_cache(maxsize=64)
def fonts(families: tuple[str, ...], whole_pixels: float | None) -> Fonts:
    """The faces of some families, opened once a process; those that MuPDF has built in need no file.

    Args:
        whole_pixels: the type size, where every letter is to be a whole number of pixels wide in it.
    """
    archive, rules, files = pymupdf.Archive(), list[str](), list[bytes]()
    for family in families:
        for name, style in zip(FACES.get(family, ()), _STYLES, strict=False):
            data = pymupdf_fonts.myfont(name)
            files.append(data if whole_pixels is None else in_whole_pixels(data, whole_pixels))
            archive.add(files[-1], name)
            rules.append(_RULE.format(family, name, *style))
    known = pymupdf.Font(fontbuffer=files[0]) if families[0] in FACES else _any_font()
    return Fonts(archive, "\n".join(rules), known)


@lru_cache(maxsize=16)
def characters(family: str) -> frozenset[int]:
    """Code points that every face of a family has; of one that is built in, none is known."""
    faces = [pymupdf.Font(fontbuffer=pymupdf_fonts.myfont(name)) for name in FACES.get(family, ())]
    return frozenset.intersection(*(frozenset(face.valid_codepoints()) for face in faces)) if faces else frozenset()


@lru_cache(maxsize=1 << 16)
def has_glyph(char: str) -> bool:
    """Whether MuPDF can draw a character with any font that it has."""
    return bool(_any_font().has_glyph(ord(char), fallback=True))


@lru_cache(maxsize=1)
def _any_font() -> pymupdf.Font:
    return pymupdf.Font(fontbuffer=pymupdf_fonts.myfont("notos"))


def in_whole_pixels(data: bytes, size: float) -> bytes:
    """A TrueType font whose letters are a whole number of pixels wide at a size, without kerning.

    As type on a screen: a letter has one shape wherever it stands, and not one for each quarter of a pixel.
    """
    font = bytearray(data)
    tables = dict[bytes, int]()
    for place in range(12, 12 + 16 * struct.unpack_from(">H", font, 4)[0], 16):
        tag = bytes(font[place : place + 4])
        tables[tag] = struct.unpack_from(">I", font, place + 8)[0]
        if tag in (b"GPOS", b"kern"):
            font[place : place + 4] = b"none"
    pixel = struct.unpack_from(">H", font, tables[b"head"] + 18)[0] / size
    for number in range(struct.unpack_from(">H", font, tables[b"hhea"] + 34)[0]):
        place = tables[b"hmtx"] + 4 * number
        width = struct.unpack_from(">H", font, place)[0]
        struct.pack_into(">H", font, place, round(round(width / pixel) * pixel))
    return bytes(font)
