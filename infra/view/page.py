"""The page: a tab for samples, for what was left out, for neighbours and curves, and the studio's."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from markupsafe import Markup

from data_specs import storage
from data_specs.root import read_spec
from data_specs.spec import Spec
from data_specs.text import printable
from infra.look import contact_sheet
from infra.report.charts import chart_svg, curves_of
from infra.status import status_lines
from infra.view import neighbours, sets, studio
from infra.view.sets import part, shown
from tokenize_jobs.views import make_views

FOLDER = Path(__file__).parent
PAGE, ROWS, REJECTS, DRAWN = 24, 8, 200, 16  # samples of a page, of neighbours, rejects listed, pictures at most
EVERY = 5.0  # seconds between two looks at a running training
JS = (FOLDER / "page.js").read_text()
NONE = "<p>Nothing chosen yet.</p>"


def page(root: str) -> gr.Blocks:
    """The whole page of a root.

    Raises:
        ValueError: there is no run here.
    """
    spec = read_spec(None, root)
    pictures, title = sets.set_names(root, "images"), f"{spec.name}: {root}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# {spec.name}", sanitize_html=True)
        with gr.Tabs():
            if pictures:
                with gr.Tab("Samples"):
                    _samples(root, spec, pictures)
                with gr.Tab("Left out"):
                    _left_out(root, pictures)
                with gr.Tab("Nearest training image"):
                    _neighbours(root, spec, pictures)
            with gr.Tab("Curves") as tab:
                _curves(root, tab)
            if spec.transformer:
                with gr.Tab("Studio"):
                    _studio(root, spec)
    return blocks


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose user's mistakes are a note on the page and not a traceback."""

    @wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except (ValueError, OSError) as error:
            raise gr.Error(printable(str(error)), duration=15, print_exception=False) from None

    return call


def _shown(value: str = "", **options: Any) -> gr.HTML:
    """A place for HTML; its tiles trigger `select`, the hole that is marked in it `input`."""
    return gr.HTML(value, elem_classes="view", js_on_load=JS, **options)


# ---- samples ---------------------------------------------------------------------------------------------------------
def _samples(root: str, spec: Spec, names: list[str]) -> None:
    with gr.Row():
        name = gr.Dropdown(names, value=names[0], label="Set")
        unit = gr.Number(value=None, precision=0, label="Shard", info="empty: all of them")
        where = gr.Textbox(
            label="Only where", info="as in dnd query", placeholder="num_words > 8 and licence = 'CC0-1.0'"
        )
        number = gr.Number(value=1, precision=0, minimum=1, label="Page")
    count = gr.Markdown()
    found = _shown()
    with gr.Row():
        before, after = gr.Button("Previous"), gr.Button("Next")
    sample = _shown(NONE)
    depth = gr.Slider(1, spec.shape.depth, value=spec.shape.depth, step=1, label="Decoded from the first … codes")
    view = gr.Number(value=0, precision=0, minimum=0, label="View", visible=spec.tokenize.views == "ten_crop")
    codes = _shown()
    index = gr.State(None)
    query = [name, unit, where, number]

    @told
    def listed(name: str, unit: int | None, where: str, number: int) -> tuple[str, str]:
        items = sets.open_now(root, name)
        places = sets.chosen(items, unit, where)
        pages = max(1, -(-len(places) // PAGE))
        on_page = [items[place] for place in places[(number - 1) * PAGE : number * PAGE]]
        words = f"{len(places):,} of {len(items):,} samples, page {number} of {pages}"
        return words, part("tiles", [shown(item["__key__"], item["image"]) for item in on_page], "No samples here.")

    @told
    def take(name: str, unit: int | None, where: str, number: int, event: gr.EventData) -> tuple[int, str]:
        items = sets.open_now(root, name)
        place = int(sets.chosen(items, unit, where)[(number - 1) * PAGE + event.index])
        shard = items.manifest.shardlist[items.locate(place)[0]].url
        return place, sets.about(items[place], shard)

    @told
    def coded(name: str, place: int | None, depth: int, view: int) -> str:
        return "" if place is None else _coded(root, spec, name, place, int(depth), int(view or 0))

    for control in (name, unit, where):
        control.change(lambda: 1, outputs=number).then(listed, query, [count, found])
    number.change(listed, query, [count, found])
    before.click(lambda number: max(1, number - 1), number, number)
    after.click(lambda number: number + 1, number, number)
    found.select(take, query, [index, sample]).then(coded, [name, index, depth, view], codes)
    for control in (depth, view):
        control.change(coded, [name, index, depth, view], codes)
    gr.on(None, listed, query, [count, found])


def _coded(root: str, spec: Spec, name: str, place: int, depth: int, view: int) -> str:
    """The codes of a sample at a depth, and what the first codes of each position make of it."""
    items = sets.open_now(root, name)
    item, unit = items[place], sets.shard_numbers(items)[items.locate(place)[0]]
    views = sets.codes_of(root, name, item["__key__"], unit)
    if views is None:
        return "<p>No codes of it under this root.</p>"
    codes = views[min(view, len(views) - 1)]
    kind = spec.tokenize.views if len(views) > 1 else "centre"
    original = make_views(item["image"], spec.shape.image_size, kind)[min(view, len(views) - 1)]
    tokenizer = studio.tokenizer_of(storage.join(root, spec.tokenize.tokenizer))
    pictures = [shown(*pair) for pair in studio.by_depth(tokenizer, codes, depth, original)]
    title = f"<h3>Code {depth} of {codes.shape[-1]} of each position</h3>"
    return part("figures", pictures) + title + part("codes", codes[..., depth - 1].tolist(), codes.shape[1] > 16)


# ---- what was left out -----------------------------------------------------------------------------------------------
def _left_out(root: str, names: list[str]) -> None:
    name = gr.Dropdown(names, value=names[0], label="Set")
    counts = _shown()
    reason = gr.Dropdown([], label="Reason", info="documents that were rejected are listed; filtered ones are counted")
    listed = _shown()
    with gr.Row():
        unit = gr.Number(value=0, precision=0, minimum=0, label="Shard")
        draw = gr.Button("Pictures of what this shard kept and left out")
    sheet = _shown()

    @told
    def counted(name: str) -> tuple[str, Any, str]:
        rows = sets.reasons(root, name)
        rejected = [reason for kind, reason, _ in rows if kind == "rejected"]
        table = part("table", ["", "reason", "count"], rows) if rows else "<p>Nothing was left out of this set.</p>"
        return table, gr.Dropdown(rejected, value=rejected[0] if rejected else None), ""

    @told
    def of_reason(name: str, reason: str | None) -> str:
        rows = (
            [(r.key, r.source, r.detail) for r in islice(sets.rejects(root, name, reason), REJECTS)] if reason else []
        )
        return part("table", ["key", "source", "what is known"], rows) if rows else ""

    @told
    def drawn(name: str, unit: int) -> str:
        picture = np.asarray(contact_sheet(root, name, int(unit), boxes=True))
        return part("figures", [shown(f"{name}, shard {unit}", picture)], "wide")

    gr.on([name.change], counted, name, [counts, reason, sheet])
    reason.change(of_reason, [name, reason], listed)
    draw.click(drawn, [name, unit], sheet)
    gr.on(None, counted, name, [counts, reason, sheet])


# ---- neighbours ------------------------------------------------------------------------------------------------------
def _neighbours(root: str, spec: Spec, names: list[str]) -> None:
    gr.Markdown(
        f"Of the {neighbours.CANDIDATES} training images whose perceptual hashes are nearest, the one that differs least "
        f"when both are reduced to {neighbours.SIDE} × {neighbours.SIDE} pixels. 0 is a copy."
    )
    drawn = [name for name in names if name.startswith("samples/")] or names
    with gr.Row():
        name = gr.Dropdown(names, value=drawn[0], label="Set")
        number = gr.Number(value=1, precision=0, minimum=1, label="Page")
    search = gr.Button("Search", variant="primary")
    found = _shown()

    @told
    def searched(name: str, number: int) -> str:
        items = sets.open_now(root, name)
        training, rows = storage.join(root, spec.tokenize.images["train"]), []
        for item in (items[place] for place in range(len(items))[(number - 1) * ROWS : number * ROWS]):
            near = neighbours.nearest(training, item["image"])
            rows += [shown(item["__key__"], item["image"]), shown(f"{near.key}: {near.difference:.1f}", near.image)]
        return part("figures", rows, "pair" if len(rows) < 3 else "")

    search.click(searched, [name, number], found)


# ---- curves ----------------------------------------------------------------------------------------------------------
def _curves(root: str, tab: gr.Tab) -> None:
    seen = _shown()
    timer = gr.Timer(EVERY, active=False)

    @told
    def looked() -> str:
        charts = [(chart.title, Markup(chart_svg(chart))) for chart in curves_of(root)]  # noqa: S704 (it escapes)
        return part("charts", charts, list(status_lines(root)))

    tab.select(looked, outputs=seen).then(lambda: gr.Timer(active=True), outputs=timer)
    timer.tick(looked, outputs=seen, show_progress="hidden")


# ---- studio ----------------------------------------------------------------------------------------------------------
def _studio(root: str, spec: Spec) -> None:
    assert spec.transformer is not None
    grid, part_ = spec.shape.grid, spec.sample
    first = lambda value: value if isinstance(value, float) else value[0]  # noqa: E731
    guided, names = spec.transformer.class_dropout > 0, sets.class_names(root)
    with gr.Row():
        number = gr.Slider(1, DRAWN, value=4, step=1, label="Pictures")
        warm = gr.Slider(
            0, 2, value=first(part_.temperature), step=0.05, label="Temperature", info="0: the likeliest code"
        )
        info = "1: none" if guided else "this model was trained without"
        guidance = gr.Slider(
            0, 10, value=first(part_.guidance), step=0.1, label="Guidance", info=info, interactive=guided
        )
        seed = gr.Number(value=spec.seed, precision=0, label="Seed")
        classes = names or [(str(n), n) for n in range(spec.transformer.num_classes)]
        cls = gr.Dropdown(classes, value=classes[0][1], label="Class", visible=len(classes) > 1)
    start = gr.Button("Draw", variant="primary")
    drawn = _shown("<p>Draw, then choose a picture to change it; or begin with a sample or a line of text.</p>")
    with gr.Row():
        with gr.Column():
            with gr.Row():
                of = gr.Dropdown(sets.set_names(root, "codes"), label="Sample of", min_width=120)
                place = gr.Number(value=0, precision=0, minimum=0, label="Number", min_width=80)
                take = gr.Button("Take this sample", min_width=120)
            with gr.Row(visible=any(s.document_kind == "text" for s in spec.render.sources)):
                words = gr.Textbox(label="Line of text", info="the model goes on behind it")
                write = gr.Button("Write this line", min_width=120)
            hole = gr.Textbox(
                label="Hole", info="top, left, bottom, right; or mark it in the picture", placeholder="2, 2, 6, 6"
            )
            depths = gr.Slider(
                *(1, spec.shape.depth),
                value=spec.shape.depth,
                step=1,
                label="Codes kept of each position",
                info="fewer: the model completes the deeper ones",
            )
            paint = gr.Button("Paint", variant="primary")
        given = _shown("<p>Nothing is given yet.</p>")
    base, kept = gr.State(None), gr.State(None)
    options = [cls, number, warm, guidance, seed]

    def load() -> Any:
        return studio.models(root, part_.ema)

    def look(base: studio.Base | None, hole: str) -> str:
        if base is None:
            return "<p>Nothing is given yet.</p>"
        free = np.argwhere(base.free).tolist()
        return part("hole", shown("", base.picture)[1], *grid, studio.hole_of(hole, grid), free)

    def draw(
        given: np.ndarray | None, cls: int, number: int, warm: float, guidance: float, seed: int
    ) -> tuple[Any, str]:
        asked = {"temperature": float(warm), "guidance": float(guidance), "seed": int(seed)}
        codes, pictures = studio.draw(load(), spec, int(cls), int(number), given, **asked)
        return codes, part("tiles", [shown(f"seed {seed}, {n}", one) for n, one in enumerate(pictures)], "")

    @told
    def from_nothing(*asked: Any) -> tuple[Any, str]:
        return draw(None, *asked)

    @told
    def from_base(base: studio.Base | None, hole: str, depths: int, *asked: Any) -> tuple[Any, str]:
        if base is None:
            raise ValueError("nothing is given: draw and choose a picture, take a sample, or write a line")
        return draw(studio.given_codes(base, studio.hole_of(hole, grid), int(depths)), *asked)

    @told
    def choose(codes: np.ndarray, event: gr.EventData) -> tuple[studio.Base, str]:
        base = studio.sample_base(load(), codes[event.index])
        return base, look(base, "")

    @told
    def sampled(of: str, place: int) -> tuple[studio.Base, str]:
        items = sets.open_now(root, of)
        if not 0 <= place < len(items):
            raise ValueError(f"{of} has the samples 0 to {len(items) - 1}")
        base = studio.sample_base(load(), items[int(place)]["codes"][0])
        return base, look(base, "")

    @told
    def written(words: str) -> tuple[studio.Base, str]:
        base = studio.text_base(load(), spec, words)
        return base, look(base, "")

    def marked(event: gr.EventData) -> str:
        return event.hole

    model = {"concurrency_id": "model", "concurrency_limit": 1}  # one at a time holds the model
    start.click(from_nothing, options, [kept, drawn], **model)
    paint.click(from_base, [base, hole, depths, *options], [kept, drawn], **model)
    drawn.select(choose, kept, [base, given], **model).then(lambda: "", outputs=hole)
    take.click(sampled, [of, place], [base, given], **model).then(lambda: "", outputs=hole)
    write.click(written, words, [base, given], **model).then(lambda: "", outputs=hole)
    given.input(marked, outputs=hole)
    hole.change(told(look), [base, hole], given)
