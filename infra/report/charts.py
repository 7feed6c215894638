"""Curves as SVG that stands in a page of any background: told apart by dashes and marks, not by colour alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from markupsafe import Markup

from data_specs import storage
from data_specs.metrics import read_rows
from data_specs.telemetry import Row

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 340, 190, 58, 12, 22, 44  # of the box of the curves, and the room around it
COLOURS = ("#2f7fd6", "#d1592b", "#23885a", "#9a63d3", "#a3781a", "#c2478c", "#2b8a97", "#7c7f86")  # on white and black
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "10 2 2 2 2 2")
MARKS = 7  # on a curve
SHARES = (0, 0.25, 0.5, 0.75, 1)
Point = tuple[float, float]


class Series(NamedTuple):
    """One curve: its name and its points, empty where there is nothing to draw; `labels` stand above the points."""

    name: str
    points: Sequence[Point]
    labels: Sequence[str] = ()


class Chart(NamedTuple):
    """Curves over the same axes; `span` is what stands at both ends of the upright one, by default its own values."""

    title: str
    across: str
    up: str
    curves: list[Series]
    span: tuple[float, float] | None = None


def curves_of(root: str) -> list[Chart]:
    """Return the curves of a root's trainings so far.

    They show PSNR, bits per code overall and by depth, and the gradient's norm.
    """
    tokenizer = read_rows(storage.join(root, "tokenizer", "metrics.jsonl"))
    transformer = read_rows(storage.join(root, "transformer", "metrics.jsonl"))
    bits = {"training": "bits_per_code", "validation": "val_bits_per_code", "EMA": "val_ema_bits_per_code"}
    wanted = [
        ("Tokenizer: what it keeps", "PSNR, dB", [Series("training", points_of(tokenizer, "psnr"))]),
        (
            "Transformer: what it predicts",
            "bits a code",
            [Series(name, points_of(transformer, key)) for name, key in bits.items()],
        ),
        ("The same by depth, training", "bits a code", _by_depth(transformer, "bits_per_code_by_depth")),
        ("The same by depth, validation, EMA", "bits a code", _by_depth(transformer, "val_ema_bits_per_code_by_depth")),
        ("Transformer: gradient before clipping", "norm", [Series("training", points_of(transformer, "grad_norm"))]),
    ]
    charts = [Chart(title, "step", up, [curve for curve in curves if curve.points]) for title, up, curves in wanted]
    return [chart for chart in charts if chart.curves]


def points_of(rows: list[Row], key: str) -> list[tuple[int, float]]:
    """Return the (step, value) of a quantity in a training's log, where it was logged."""
    return [(int(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def _by_depth(rows: list[Row], key: str) -> list[Series]:
    """Return a curve for each depth of a key whose values are lists."""
    listed = [row for row in rows if isinstance(row.get(key), tuple)]
    depths = range(min((len(row[key]) for row in listed), default=0))
    return [Series(f"depth {d + 1}", [(row["step"], row[key][d]) for row in listed]) for d in depths]


def chart_svg(chart: Chart) -> Markup:
    """Draw a chart of at least one point as an SVG element with its legend.

    Text and lines take the page's colour.
    """
    points = [point for curve in chart.curves for point in curve.points]
    scale = _Scale(0.0, max(x for x, _ in points) or 1.0, *(chart.span or _span([y for _, y in points])))
    rows = -(-len(chart.curves) // 2)
    height = TOP + HEIGHT + BOTTOM + 16 * rows
    last = "; ".join(f"{curve.name} ends at {curve.points[-1][1]:.4g}" for curve in chart.curves)
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" '
        f"aria-label={quoteattr(f'{chart.title}: {chart.up} over {chart.across}. {last}')} "
        'style="width:100%;font:12px system-ui,sans-serif;color:inherit">'
    )
    lines = (part for n, curve in enumerate(chart.curves) for part in _drawn(n, curve, scale))
    legend = (part for n, curve in enumerate(chart.curves) for part in _legend(n, curve))
    return Markup("\n".join([head, *_axes(chart, scale), *lines, *legend, "</svg>"]))  # noqa: S704 (it is escaped)


class _Scale(NamedTuple):
    """What values stand at the edges of the box."""

    left: float
    right: float
    low: float
    high: float

    def at(self, point: Point) -> Point:
        """Return where a point stands in the picture."""
        across = (point[0] - self.left) / (self.right - self.left)
        up = (point[1] - self.low) / (self.high - self.low)
        return LEFT + WIDTH * across, TOP + HEIGHT * (1 - up)


def _span(values: list[float]) -> tuple[float, float]:
    low = min(values)
    high = max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(chart: Chart, scale: _Scale) -> Iterator[str]:
    for share in SHARES:
        value = scale.low + (scale.high - scale.low) * share
        step = scale.right * share
        x, y = scale.at((step, value))
        yield f'<path d="M{LEFT} {y:.1f}H{LEFT + WIDTH}" stroke="currentColor" stroke-opacity=".18"/>'
        yield _text(LEFT - 6, y + 4, f"{value:.3g}", "end")
        yield _text(x, TOP + HEIGHT + 17, f"{step:.0f}")
    yield _text(LEFT + WIDTH / 2, TOP + HEIGHT + 35, chart.across)
    middle = TOP + HEIGHT / 2
    yield _text(12, middle, chart.up, turn=f' transform="rotate(-90 12 {middle})"')


def _drawn(number: int, curve: Series, scale: _Scale) -> Iterator[str]:
    """Draw the line of a curve, marks evenly on it, and its labels."""
    placed = [scale.at(point) for point in curve.points]
    yield f'<polyline {_stroke(number)} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>'
    every = max(1, len(placed) // MARKS)
    yield from (_mark(number, *point) for point in placed[number % every :: every])
    yield from (_text(x, y - 9, label) for label, (x, y) in zip(curve.labels, placed))


def _legend(number: int, curve: Series) -> Iterator[str]:
    row, column = divmod(number, 2)
    x, y = 10 + column * (LEFT + WIDTH) / 2, TOP + HEIGHT + BOTTOM + 16 * row + 6
    yield f'<path d="M{x} {y}h26" {_stroke(number)}/>{_mark(number, x + 13, y)}'
    last = "" if curve.labels else f", {curve.points[-1][1]:.4g} at last"
    yield _text(x + 32, y + 4, curve.name + last, "start")


def _stroke(number: int) -> str:
    dash = f' stroke-dasharray="{DASHES[number % len(DASHES)]}"' if number % len(DASHES) else ""
    return f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="1.7"{dash}'


def _mark(number: int, x: float, y: float) -> str:
    """Draw the mark of a curve: circle, square, triangle or diamond, filled or, for the second four, not."""
    colour = COLOURS[number % len(COLOURS)]
    fill = colour if number % 8 < 4 else "none"
    paths = (
        f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
        f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8z",
        f"M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    )
    return f'<path d="{paths[number % 4]}" fill="{fill}" stroke="{colour}"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle", turn: str = "") -> str:
    """Words at a place, in the page's colour."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="currentColor" text-anchor="{anchor}"{turn}>{escape(words)}</text>'
