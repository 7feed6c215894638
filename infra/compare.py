"""Two roots side by side (`dnd compare ROOT1 ROOT2`): what differs in their specs, their curves, their figures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from pydantic import JsonValue

from data_specs import storage
from data_specs.digest import differences
from data_specs.metrics import read_rows
from data_specs.root import read_spec
from infra.report.charts import points_of
from infra.report.tables import figure_text
from train.evaluation.results import compare as compare_results
from train.evaluation.results import read_results

CURVES = (  # folder of a training, key of its rows
    ("tokenizer", "psnr"),
    ("transformer", "bits_per_code"),
    ("transformer", "val_bits_per_code"),
    ("transformer", "val_ema_bits_per_code"),
)
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # bars of a curve

Points = list[tuple[int, float]]  # (step, value)


def compare_roots(first: str, second: str) -> dict[str, Any]:
    """Return what differs between two roots, as `dnd compare --json` prints it.

    Returns:
        A dict with the keys `roots`, `spec`, `curves`, `figures` and `assumptions`.

    Raises:
        ValueError: one of them holds neither a spec nor a result.
    """
    roots = (first, second)
    results: list[dict[str, JsonValue]] = [
        {name: result.tree() for name, result in read_results(root).items()} for root in roots
    ]
    recorded = (storage.exists(storage.join(root, "spec.yaml")) for root in roots)
    trees = [read_spec(None, root).tree() if has else {} for root, has in zip(roots, recorded, strict=True)]
    for root, result, tree in zip(roots, results, trees, strict=True):
        if not result and not tree:
            raise ValueError(f"{root}: there is neither a spec.yaml nor a result in evaluation/; is it a root?")
    spec = differences(trees[0], trees[1]) if all(trees) else []
    return {
        "roots": list(roots),
        "spec": [{"key": key, "a": a, "b": b} for key, a, b in spec],
        "curves": [curve for folder, key in CURVES if (curve := _curve(roots, folder, key))],
        **compare_results(*results),
    }


def comparison_lines(compared: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that show a comparison in the terminal; curves of one quantity share their scale."""
    yield from (f"{name}: {root}" for name, root in zip("ab", compared["roots"], strict=True))
    yield from ("", "What differs in the specs:" if compared["spec"] else "The specs are the same.")
    yield from (f"{row['key']:56} {row['a']} | {row['b']}" for row in compared["spec"])
    for curve in compared["curves"]:
        yield from _curve_lines(curve)
    if compared["figures"]:
        yield from ("", f"{'Figure':56} {'a':>10} {'b':>10} {'b - a':>10}")
    for row in compared["figures"]:
        difference = "" if row["difference"] is None else f"{row['difference']:+.4g}"
        yield f"{row['name']:56} {figure_text(row['a']):>10} {figure_text(row['b']):>10} {difference:>10}"
    if compared["assumptions"]:
        yield from ("", "Not measured alike:")
    yield from (f"{row['name']:56} {row['a']} | {row['b']}" for row in compared["assumptions"])


def _curve(roots: tuple[str, str], folder: str, key: str) -> dict[str, Any] | None:
    """Return a quantity over the training steps of both roots, or None where neither logged it."""
    found = [points_of(read_rows(storage.join(root, folder, "metrics.jsonl")), key) for root in roots]
    return {"name": f"{folder}: {key.replace('_', ' ')}", "a": found[0], "b": found[1]} if any(found) else None


def _curve_lines(curve: dict[str, Any]) -> Iterator[str]:
    points = list(chain(curve["a"], curve["b"]))
    last = max(step for step, _ in points)
    low = min(v for _, v in points)
    high = max(v for _, v in points)
    yield from ("", f"{curve['name']}, steps 0 to {last}, from {figure_text(low)} to {figure_text(high)}")
    for name in "ab":
        if line := curve[name]:
            yield f"    {name} {_bars(line, last, low, high)} {figure_text(line[-1][1])} at step {line[-1][0]}"
        else:
            yield f"    {name} not logged"


def _bars(line: Points, last: int, low: float, high: float) -> str:
    """Draw a curve as WIDTH bars over steps 0 to `last`.

    Each bar shows the last value among its steps; bars after the curve's end are blank.
    """
    drawn = ""
    index = 0
    value = line[0][1]
    for column in range(WIDTH):
        while index < len(line) and line[index][0] <= (column + 1) * last / WIDTH:
            value = line[index][1]
            index += 1
        ended = column * last / WIDTH > line[-1][0]
        drawn += " " if ended else BARS[round((value - low) / ((high - low) or 1.0) * (len(BARS) - 1))]
    return drawn
