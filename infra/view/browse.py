"""The tabs in which one walks through a root: samples, what was left out, neighbours, curves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import gradio as gr
import numpy as np

from data_specs import storage
from data_specs.spec import Spec
from infra.look import contact_sheet
from infra.report.charts import chart_svg, curves_of
from infra.status import status_lines
from infra.view import neighbours, sets, studio
from infra.view.page import html_block, reporting_mistakes
from infra.view.sets import macro, shown
from tokenize_jobs.views import make_views

PAGE = 24  # samples on a page
ROWS = 8  # samples on a page of neighbours
REJECTS = 200  # that are listed
ALL = "all"  # shards together
LISTED = 64  # of a set of more shards the first is shown at first
Handler = Callable[..., object]  # of an event: takes the values of its inputs, returns those of its outputs
CHANGED = "the set has fewer samples than when they were listed: choose a page anew"
EVERY = 5.0  # seconds between two looks at a running training


# ---- samples ---------------------------------------------------------------------------------------------------------
def samples(root: str, spec: Spec, names: list[str]) -> None:
    with gr.Row():
        name = gr.Dropdown(names, value=names[0], label="Set")
        unit = gr.Dropdown([ALL], value=ALL, label="Shard")
        where = gr.Textbox(
            label="Only where", info="as in dnd query", placeholder="num_words > 8 and licence = 'CC0-1.0'"
        )
        number = gr.Number(value=1, precision=0, minimum=1, label="Page")
    count = gr.Markdown()
    found = html_block()
    with gr.Row():
        before = gr.Button("Previous")
        after = gr.Button("Next")
    sample = html_block("<p>Choose a sample.</p>")
    depth = gr.Slider(1, spec.codes.depth, value=spec.codes.depth, step=1, label="Decoded from the first … codes")
    view = gr.Number(value=0, precision=0, minimum=0, label="View", visible=spec.tokenize.views == "ten_crop")
    codes = html_block()
    index = gr.State(None)
    query = [name, unit, where, number]
    shards_of, list_samples = _listing(root)
    show_sample, show_codes = _showing(root, spec)
    name.change(shards_of, name, [unit, number]).then(list_samples, query, [count, found])
    gr.on([unit.input, where.submit], lambda: 1, None, number).then(list_samples, query, [count, found])
    number.change(list_samples, query, [count, found])
    before.click(lambda number: max(1, (number or 1) - 1), number, number)
    after.click(lambda number: (number or 0) + 1, number, number)
    found.select(show_sample, query, [index, sample]).then(show_codes, [name, index, depth, view], codes)
    for control in (depth, view):
        control.change(show_codes, [name, index, depth, view], codes)
    gr.on(None, shards_of, name, [unit, number]).then(list_samples, query, [count, found])


def _listing(root: str) -> tuple[Handler, Handler]:
    """Return what lists the shards of a set, and a page of its samples."""

    @reporting_mistakes
    def shards_of(name: str) -> tuple[gr.Dropdown, int]:
        units = [str(unit) for unit in sets.shard_numbers(sets.open_now(root, name))]
        return gr.Dropdown([ALL, *units], value=units[0] if len(units) > LISTED else ALL), 1

    @reporting_mistakes
    def list_samples(name: str, unit: str, where: str, number: int) -> tuple[str, str]:
        items = sets.open_now(root, name)
        positions = sets.chosen(items, _unit(unit), where)
        pages = max(1, -(-len(positions) // PAGE))
        number = number or 1  # a field that was emptied
        on_page = [items[position] for position in positions[(number - 1) * PAGE : number * PAGE]]
        words = f"{len(positions):,} of {len(items):,} samples, page {number} of {pages}"
        return words, macro("tiles", [shown(item["__key__"], item["image"]) for item in on_page], "No samples here.")

    return shards_of, list_samples


def _showing(root: str, spec: Spec) -> tuple[Handler, Handler]:
    """Return what shows the sample that was chosen on a page, and its codes."""

    @reporting_mistakes
    def show_sample(name: str, unit: str, where: str, number: int, event: gr.EventData) -> tuple[int, str]:
        items = sets.open_now(root, name)
        positions = sets.chosen(items, _unit(unit), where)
        chosen = ((number or 1) - 1) * PAGE + event.index
        if chosen >= len(positions):
            raise ValueError(CHANGED)
        position = int(positions[chosen])
        shard = items.manifest.shardlist[items.locate(position)[0]].url
        return position, sets.about(items[position], shard)

    @reporting_mistakes
    def show_codes(name: str, position: int | None, depth: int, view: int) -> str:
        return "" if position is None else _coded(root, spec, name, position, int(depth), int(view or 0))

    return show_sample, show_codes


def _unit(shard: str) -> int | None:
    return None if shard == ALL else int(shard)


def _coded(root: str, spec: Spec, name: str, position: int, depth: int, view: int) -> str:
    """Return HTML with a sample's codes at a depth and what the first codes of each position decode to."""
    items = sets.open_now(root, name)
    if position >= len(items):
        raise ValueError(CHANGED)
    item = items[position]
    unit = sets.shard_numbers(items)[items.locate(position)[0]]
    views = sets.codes_of(root, name, item["__key__"], unit)
    if views is None:
        return "<p>No codes of it under this root.</p>"
    codes = views[min(view, len(views) - 1)]
    cut = spec.tokenize.views if len(views) > 1 else "centre"
    original = make_views(item["image"], spec.shape.image_size, cut)[min(view, len(views) - 1)]
    tokenizer = studio.tokenizer_of(storage.join(root, spec.tokenize.tokenizer))
    pictures = [shown(*pair) for pair in studio.by_depth(tokenizer, codes, depth, original)]
    title = f"<h3>Code {depth} of {codes.shape[-1]} of each position</h3>"
    return macro("figures", pictures) + title + macro("codes", codes[..., depth - 1].tolist(), codes.shape[1] > 16)


# ---- what was left out -----------------------------------------------------------------------------------------------
def left_out(root: str, names: list[str]) -> None:
    name = gr.Dropdown(names, value=names[0], label="Set")
    counts = html_block()
    reason = gr.Dropdown([], label="Rejected for", visible=False)
    listed = html_block()
    with gr.Row():
        unit = gr.Number(value=0, precision=0, minimum=0, label="Shard")
        button = gr.Button("Pictures of what this shard kept and left out")
    sheet = html_block()
    count_reasons, list_rejects, draw = _reporting_dropped(root)
    gr.on([name.change], count_reasons, name, [counts, reason, sheet])
    reason.change(list_rejects, [name, reason], listed)
    button.click(draw, [name, unit], sheet)
    gr.on(None, count_reasons, name, [counts, reason, sheet])


def _reporting_dropped(root: str) -> tuple[Handler, Handler, Handler]:
    """Return what counts the reasons of a set, lists what was rejected for one, and draws a shard's contact sheet."""

    @reporting_mistakes
    def count_reasons(name: str) -> tuple[str, gr.Dropdown, str]:
        rows = sets.reasons(root, name)
        rejected = [reason for kind, reason, _ in rows if kind == "rejected"]
        table = macro("table", ["", "reason", "count"], rows) if rows else "<p>Nothing was left out of this set.</p>"
        return table, gr.Dropdown(rejected, value=rejected[0] if rejected else None, visible=bool(rejected)), ""

    @reporting_mistakes
    def list_rejects(name: str, reason: str | None) -> str:
        rows = (
            [(r.key, r.source, r.detail) for r in islice(sets.rejects(root, name, reason), REJECTS)] if reason else []
        )
        return macro("table", ["key", "source", "what is known"], rows) if rows else ""

    @reporting_mistakes
    def draw(name: str, unit: int) -> str:
        picture = np.asarray(contact_sheet(root, name, int(unit or 0), boxes=True))
        return macro("figures", [shown(f"{name}, shard {unit or 0}", picture)], "wide")

    return count_reasons, list_rejects, draw


# ---- neighbours ------------------------------------------------------------------------------------------------------
def neighbours_of(root: str, spec: Spec, names: list[str]) -> None:
    gr.Markdown(
        f"Of the {neighbours.CANDIDATES} training images whose perceptual hashes are nearest, the one that differs "
        f"least when both are reduced to {neighbours.SIDE} × {neighbours.SIDE} pixels. 0 is a copy, 255 the most."
    )
    drawn = [name for name in names if name.startswith("samples/")] or names
    with gr.Row():
        name = gr.Dropdown(names, value=drawn[0], label="Set")
        number = gr.Number(value=1, precision=0, minimum=1, label="Page")
    button = gr.Button("Search", variant="primary")
    found = html_block()

    @reporting_mistakes
    def search(name: str, number: int) -> str:
        items = sets.open_now(root, name)
        training = storage.join(root, spec.tokenize.images["train"])
        rows = []
        number = number or 1
        for item in (items[position] for position in range(len(items))[(number - 1) * ROWS : number * ROWS]):
            near = neighbours.nearest(training, item["image"])
            about = f"{near.key}, difference {near.difference:.1f}"
            rows.append([shown(item["__key__"], item["image"]), shown(about, near.image)])
        return macro("pairs", rows)

    button.click(search, [name, number], found)


# ---- curves ----------------------------------------------------------------------------------------------------------
def curves(root: str, tab: gr.Tab) -> None:
    seen = html_block()
    timer = gr.Timer(EVERY, active=False)

    @reporting_mistakes
    def show_curves() -> str:
        charts = [(chart.title, chart_svg(chart)) for chart in curves_of(root)]
        return macro("charts", charts, list(status_lines(root)))

    tab.select(show_curves, outputs=seen).then(lambda: gr.Timer(active=True), outputs=timer)
    timer.tick(show_curves, outputs=seen, show_progress="hidden")
