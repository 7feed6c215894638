"""What came of an experiment: a table in Markdown, a picture of samples, and the share of real words as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.experiments.costs import Cost
from benchmarks.experiments.experiment import Experiment, Run, spec_of
from data_specs import storage
from data_specs.metrics import read_rows
from data_specs.records import Legibility

SHOWN = 10  # samples of an arm in the picture
LABEL = 190  # pixels of a picture for an arm's name
HEAD = (
    *("arm", "steps", "training, TFLOP", "ms a step", "bits a code", "bits an image"),
    *("real words, ratio to real text (95 % interval)", "distinct words", "ms an image"),
)


class Figures(NamedTuple):
    """What one run came to, with one way of drawing samples."""

    bits_per_code: float
    bits_per_image: float
    ratio: float | None
    interval: tuple[float, float] | None
    distinct_words: int
    kept_words: float | None  # share of real words in reconstructions, over that of the pictures


class Row(NamedTuple):
    """An arm with one way of drawing samples: the figures of each seed, and where the first seed's samples lie."""

    name: str
    arm: str
    steps: int
    figures: list[Figures]
    pictures: str


def rows_of(experiment: Experiment, runs: Sequence[Run]) -> list[Row]:
    """Return a row for each arm and sampling, read from the roots of the runs."""
    return [
        _row(experiment, [run for run in runs if run.arm == arm], sampling)
        for arm in experiment.arms
        for sampling in experiment.samplings
    ]


def _row(experiment: Experiment, runs: list[Run], sampling: str) -> Row:
    of_several = ((runs[0].arm, experiment.arms), (sampling, experiment.samplings))
    names = [name for name, others in of_several if len(others) > 1]
    figures = [figures_of(experiment, run, sampling) for run in runs]
    steps = spec_of(experiment, runs[0]).train.steps
    samples = storage.join(runs[0].root, "samples", sampling, "samples.npz")
    return Row(", ".join(names) or runs[0].arm, runs[0].arm, steps, figures, samples)


def figures_of(experiment: Experiment, run: Run, sampling: str) -> Figures:
    """Return the figures of a run; bits are those of the EMA weights, from which samples are drawn.

    A code's bits are -log2 of the probability that the model gives it, behind whatever the arm predicts it from: those
    of an image add up to its exact likelihood.
    """
    rows = read_rows(storage.join(run.root, "transformer", "metrics.jsonl"))
    bits = next(float(row["val_ema_bits_per_code"]) for row in reversed(rows) if "val_ema_bits_per_code" in row)
    codes = spec_of(experiment, run).codes
    uri = storage.join(run.root, "evaluation", f"{sampling}.json")
    read = Legibility.parse(storage.read_bytes(uri), uri)
    low, high = read.ratio_interval or (None, None)
    kept, real = (read.real_words.get(kind) for kind in ("reconstructed", "real"))
    return Figures(
        bits_per_code=bits,
        bits_per_image=bits * math.prod(codes.grid) * codes.depth,
        ratio=read.ratio,
        interval=None if low is None or high is None else (low, high),
        distinct_words=read.distinct_words["generated"],
        kept_words=kept / real if experiment.reconstruct and kept is not None and real else None,
    )


# ---- the table -----------------------------------------------------------------------------------------------------
def table(rows: Sequence[Row], costs: dict[str, Cost]) -> str:
    """Return the table in Markdown, with the figures of several seeds one after the other."""
    kept = any(figures.kept_words is not None for row in rows for figures in row.figures)
    head = [*HEAD, "real words that the tokenizer keeps"] if kept else HEAD
    lines = [_line(head), _line(["---"] * len(head))]
    return "\n".join([*lines, *(_line(list(_cells(row, costs[row.arm], kept))) for row in rows)])


def _cells(row: Row, cost: Cost, kept: bool) -> Iterator[str]:
    yield from (row.name, str(row.steps), f"{cost.flops / 1e12:.3g}", f"{cost.step_ms:.0f}")
    yield ", ".join(f"{one.bits_per_code:.3f}" for one in row.figures)
    yield ", ".join(f"{one.bits_per_image:.1f}" for one in row.figures)
    yield ", ".join(map(_ratio, row.figures))
    yield ", ".join(str(one.distinct_words) for one in row.figures)
    yield f"{cost.image_ms:.1f}"
    if kept:
        yield next((f"{one.kept_words:.2f}" for one in row.figures if one.kept_words is not None), "")


def _ratio(figures: Figures) -> str:
    if figures.ratio is None or figures.interval is None:
        return "no words"
    return f"{figures.ratio:.2f} ({figures.interval[0]:.2f}–{figures.interval[1]:.2f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---- the pictures --------------------------------------------------------------------------------------------------
def strip(rows: Sequence[Row]) -> Image.Image:
    """Draw a line for each row: its name, then the first samples of its first seed."""
    lines = [_samples(row.pictures) for row in rows]
    side = lines[0].shape[1]
    picture = Image.new("RGB", (LABEL + SHOWN * (side + 2), len(rows) * (side + 2)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15)
    draw.rectangle((LABEL - 2, 0, *picture.size), "#c8ced6")
    for index, (row, images) in enumerate(zip(rows, lines, strict=True)):
        top = index * (side + 2)
        draw.text((6, top + side / 2 - 9), row.name, "#1b1f24", font)
        for column, image in enumerate(images):
            picture.paste(Image.fromarray(image), (LABEL + column * (side + 2), top))
    return picture


def _samples(uri: str) -> np.ndarray:
    with np.load(storage.local_copy(uri), allow_pickle=False) as file:
        images: np.ndarray = file["arr_0"][:SHOWN]
    return images


def ratios_svg(rows: Sequence[Row], title: str) -> str:
    """Return an SVG document with the ratio of real words to real text, and its interval, for each row and seed."""
    width, gap, top = 420, 28, 30  # pixels
    height = top + gap * len(rows)
    at = [LABEL + width * share / 1.2 for share in (0, 0.25, 0.5, 0.75, 1)]
    parts = [f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>']
    for x, label in zip(at, ("0", ".25", ".5", ".75", "real text"), strict=True):
        parts += [f'<path d="M{x:.0f} {top}V{height}" stroke="#d8dee4"/>', _text(x, height + 18, label, "middle")]
    for index, row in enumerate(rows):
        y = top + gap * (index + 0.5)
        parts.append(_text(8, y + 4, row.name))
        for number, figures in enumerate(row.figures):
            parts += _mark(figures, width / 1.2, y + 6 * (number - (len(row.figures) - 1) / 2))
    size = f'width="{LABEL + width + 20}" height="{height + 30}"'
    style = "font:13px sans-serif;background:#fff"
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}" fill="#1b1f24">\n{body}\n</svg>\n'


def _mark(figures: Figures, unit: float, y: float) -> list[str]:
    if figures.ratio is None or figures.interval is None:
        return []
    low, high = (LABEL + unit * value for value in figures.interval)
    circle = f'<circle cx="{LABEL + unit * figures.ratio:.1f}" cy="{y:.1f}" r="3.5" fill="#0969da"/>'
    return [f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="#0969da" stroke-opacity=".6"/>', circle]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def write(folder: Path, name: str, experiment: Experiment, rows: Sequence[Row], costs: dict[str, Cost]) -> str:
    """Write NAME.md, NAME.png and NAME.svg; return the table."""
    text = table(rows, costs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(f"{text}\n")
    strip(rows).save(folder / f"{name}.png", optimize=True)
    (folder / f"{name}.svg").write_text(ratios_svg(rows, experiment.title))
    return text
