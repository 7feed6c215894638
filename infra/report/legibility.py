"""The picture of `dnd evaluate legibility`: share of real words against distinct words over temperatures, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP = 600, 320, 70, 20
INK, SOFT, OURS, REAL = "#1b1f24", "#59636e", "#0969da", "#1a7f37"
Point = tuple[str, float, float]  # label, distinct words, share of real words


def legibility_chart(sweep: Sequence[dict[str, Any]], real: tuple[float, float]) -> str:
    """An SVG document: a point for each temperature, real text as a point of its own.

    Args:
        sweep: rows of temperature, real_words and distinct_words.
        real: (distinct words, share of real words) of real images.
    """
    drawn = [(f"{row['temperature']:g}", row["distinct_words"], row["real_words"] or 0.0) for row in sweep]
    most = max([real[0], *(words for _, words, _ in drawn)]) * 1.1 or 1.0
    line = " ".join(f"{_across(words, most):.1f},{_up(share):.1f}" for _, words, share in drawn)
    marks = [*_axes(most), f'<polyline points="{line}" fill="none" stroke="{OURS}" stroke-width="1.8"/>']
    marks += [_point(point, most, OURS) for point in drawn] + [_point(("real text", *real), most, REAL)]
    size = f'width="{WIDTH + LEFT + 60}" height="{HEIGHT + TOP + 60}"'
    style = "font-family:sans-serif;font-size:13px"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n' + "\n".join(marks) + "\n</svg>\n"


def _axes(most: float) -> Iterator[str]:
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _up(share)
        yield f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y}" y2="{y}" stroke="#d8dee4"/>'
        yield _text(LEFT - 8, y + 4, f"{share:.0%}", SOFT, "end")
    for number in (0, most / 4, most / 2, most * 3 / 4, most):
        yield _text(_across(number, most), TOP + HEIGHT + 20, f"{number:.0f}", SOFT)
    yield _text(LEFT + WIDTH / 2, TOP + HEIGHT + 42, "distinct real words, by temperature", INK)
    yield _text(LEFT, TOP - 6, "real words among those read", INK, "start")


def _point(point: Point, most: float, colour: str) -> str:
    label, words, share = point
    x = _across(words, most)
    y = _up(share)
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    return circle + _text(x + 9, y - 7, label, colour, "start")


def _text(x: float, y: float, words: str, colour: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'


def _across(words: float, most: float) -> float:
    return LEFT + WIDTH * words / most


def _up(share: float) -> float:
    return TOP + HEIGHT * (1 - share)
