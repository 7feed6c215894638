"""The fonts of rich text, from the package pymupdf-fonts (SIL Open Font License and similar)."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import pymupdf
import pymupdf_fonts
from PIL import ImageFont

FAMILIES = {
    "noto-sans": {"regular": "notos", "bold": "notosbo", "italic": "notosit"},
    "fira-go": {"regular": "figo", "bold": "figbo", "italic": "figit"},
    "ubuntu": {"regular": "ubuntu", "bold": "ubuntubo", "italic": "ubuntuit"},
    "cascadia-mono": {"regular": "cascadia", "bold": "cascadiab", "italic": "cascadiai"},
    "space-mono": {"regular": "spacemo", "bold": "spacembo", "italic": "spacemit"},
    "ubuntu-mono": {"regular": "ubuntm", "bold": "ubuntmbo", "italic": "ubuntmit"},
}


@lru_cache(maxsize=256)
def font(family: str, weight: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels. Raises ValueError for an unknown family, naming those there are."""
    if family not in FAMILIES:
        raise ValueError(f"render.text.fonts: there is no {family!r}; known: {', '.join(FAMILIES)}")
    return ImageFont.truetype(BytesIO(pymupdf_fonts.myfont(FAMILIES[family][weight])), size)


@lru_cache(maxsize=64)
def characters(family: str) -> frozenset[int]:
    """Code points that every weight of a family can draw."""
    fonts = (pymupdf.Font(fontbuffer=pymupdf_fonts.myfont(name)) for name in FAMILIES[family].values())
    sets = [frozenset(f.valid_codepoints()) for f in fonts]
    return frozenset.intersection(*sets)


@lru_cache(maxsize=65536)
def width(family: str, weight: str, size: int, word: str) -> float:
    """Advance of a word in pixels."""
    return font(family, weight, size).getlength(word)
