"""The studio's tab: what is drawn, and what is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.events import Dependency

from data_specs.spec import Spec
from infra.view import sets, studio
from infra.view.page import html_block, reporting_mistakes
from infra.view.sets import macro, shown
from train.generate import Generator

DRAWN = 16  # pictures at most
NOTHING = "<p>Nothing is given yet: choose a picture that was drawn, take a sample, or write a line.</p>"
Given = tuple[studio.Base, str]  # what the next drawing starts from, and what the page shows of it
Drawn = tuple[np.ndarray, str]  # codes of pictures, and what the page shows of them


class Concurrency(TypedDict):
    """How many handlers of an event run at once."""

    concurrency_id: str
    concurrency_limit: int


EXCLUSIVE: Concurrency = {"concurrency_id": "model", "concurrency_limit": 1}  # one at a time holds the model


def studio_tab(root: str, spec: Spec) -> None:
    """Build the tab that draws pictures, and draws them anew around what is given."""
    options = _options(root, spec)
    start = gr.Button("Draw", variant="primary")
    drawn = html_block()
    with gr.Row():
        controls = gr.Column()
        with gr.Column():
            given = html_block(NOTHING)
    codes = gr.State(None)
    base = gr.State(None)
    with controls:
        hole = _base_controls(root, spec, codes, drawn, base, given)
        about = "fewer: the model completes the deeper ones"
        depth = spec.shape.depth
        depths = gr.Slider(1, depth, value=depth, step=1, label="Codes kept of each position", info=about)
        paint = gr.Button("Paint", variant="primary")
    from_nothing, from_base = _drawing(root, spec)
    start.click(from_nothing, options, [codes, drawn], **EXCLUSIVE)
    paint.click(from_base, [base, hole, depths, *options], [codes, drawn], **EXCLUSIVE)


def _options(root: str, spec: Spec) -> list[Component]:
    """Return the controls for class, number, temperature, guidance and seed."""
    assert spec.transformer is not None
    guided = spec.transformer.class_dropout > 0
    classes = sets.class_names(root) or [(str(n), n) for n in range(spec.transformer.num_classes)]
    with gr.Row():
        cls = gr.Dropdown(classes, value=classes[0][1], label="Class", visible=len(classes) > 1)
        number = gr.Slider(1, DRAWN, value=4, step=1, label="Pictures")
        temperature = gr.Slider(
            0, 2, value=_first(spec.sample.temperature), step=0.05, label="Temperature", info="0: greedy"
        )
        about = "1: none" if guided else "this model was trained without"
        guidance = gr.Slider(
            *(0, 10), value=_first(spec.sample.guidance), step=0.1, label="Guidance", info=about, interactive=guided
        )
        seed = gr.Number(value=spec.seed, precision=0, label="Seed")
    return [cls, number, temperature, guidance, seed]


def _first(value: float | Sequence[float]) -> float:
    return value if isinstance(value, float | int) else value[0]


def _drawing(root: str, spec: Spec) -> tuple[Callable[..., Drawn], Callable[..., Drawn]]:
    """Return what the buttons Draw and Paint do."""

    def draw(
        fixed: np.ndarray | None, cls: float, number: float, temperature: float, guidance: float, seed: float
    ) -> Drawn:
        codes, pictures = studio.draw(
            *(_models(root, spec), spec, int(cls), int(number), fixed),
            temperature=float(temperature),
            guidance=float(guidance),
            seed=int(seed or 0),
        )
        return codes, macro("tiles", [shown(f"seed {seed or 0}, {n}", one) for n, one in enumerate(pictures)], "")

    @reporting_mistakes
    def from_nothing(*asked: float) -> Drawn:
        return draw(None, *asked)

    @reporting_mistakes
    def from_base(base: studio.Base | None, hole: str, depths: float, *asked: float) -> Drawn:
        if base is None:
            raise ValueError("nothing is given: choose a picture that was drawn, take a sample, or write a line")
        return draw(studio.given_codes(base, studio.hole_of(hole, spec.shape.grid), int(depths)), *asked)

    return from_nothing, from_base


# ---- what is given ---------------------------------------------------------------------------------------------------
def _base_controls(
    root: str, spec: Spec, codes: gr.State, drawn: gr.HTML, base: gr.State, given: gr.HTML
) -> gr.Textbox:
    """Make the controls that give a drawn picture, a sample or a line, and mark a hole in it, which is returned."""
    outputs: list[Component] = [base, given]

    @reporting_mistakes
    def choose(codes: np.ndarray, event: gr.EventData) -> Given:
        base = studio.sample_base(_models(root, spec), codes[event.index])
        return base, _shown_base(spec, base, "")

    @reporting_mistakes
    def mark(base: studio.Base | None, hole: str) -> str:
        return _shown_base(spec, base, hole)

    def marked(event: gr.EventData) -> str:
        return str(event.hole)

    chosen = drawn.select(choose, codes, outputs, **EXCLUSIVE)
    taken = _sample_controls(root, spec, outputs)
    written = _line_controls(root, spec, outputs)
    hole = gr.Textbox(
        label="Hole", info="top, left, bottom, right; or mark it in the picture", placeholder="2, 2, 6, 6"
    )
    for event in (chosen, taken, written):
        event.then(lambda: "", outputs=hole)
    given.input(marked, outputs=hole)
    hole.change(mark, [base, hole], given)
    return hole


def _sample_controls(root: str, spec: Spec, outputs: list[Component]) -> Dependency:
    with gr.Row():
        names = gr.Dropdown(sets.set_names(root, "codes"), label="Sample of", min_width=160)
        number = gr.Number(value=0, precision=0, minimum=0, label="Number", min_width=80)
        button = gr.Button("Take this sample", min_width=120)

    @reporting_mistakes
    def take(name: str, index: int) -> Given:
        items = sets.open_now(root, name)
        number = int(index or 0)
        if not 0 <= number < len(items):
            raise ValueError(f"{name} has the samples 0 to {len(items) - 1}")
        base = studio.sample_base(_models(root, spec), items[number]["codes"][0])
        return base, _shown_base(spec, base, "")

    return button.click(take, [names, number], outputs, **EXCLUSIVE)


def _line_controls(root: str, spec: Spec, outputs: list[Component]) -> Dependency:
    with gr.Row(visible=any(source.document_kind == "text" for source in spec.render.sources)):
        line = gr.Textbox(label="Line of text", info="the model goes on behind it", min_width=160)
        button = gr.Button("Write this line", min_width=120)

    @reporting_mistakes
    def write(words: str) -> Given:
        base = studio.text_base(_models(root, spec), spec, words)
        return base, _shown_base(spec, base, "")

    return button.click(write, line, outputs, **EXCLUSIVE)


def _shown_base(spec: Spec, base: studio.Base | None, hole: str) -> str:
    if base is None:
        return NOTHING
    free = np.argwhere(base.free).tolist()
    return macro("hole", shown("", base.picture)[1], *spec.shape.grid, studio.hole_of(hole, spec.shape.grid), free)


def _models(root: str, spec: Spec) -> Generator:
    return studio.models(root, spec.sample.ema)
