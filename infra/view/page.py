"""The page: its tabs, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import gradio as gr

from data_specs.root import read_spec
from data_specs.text import printable

FOLDER = Path(__file__).parent
JS = (FOLDER / "page.js").read_text()
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def page(root: str) -> gr.Blocks:
    """Build the whole page of a root.

    Raises:
        ValueError: there is no run here.
    """
    from infra.view import browse, sets
    from infra.view.studio_tab import studio_tab

    spec = read_spec(None, root)
    pictures = sets.set_names(root, "images")
    with gr.Blocks(title=f"{spec.name}: {root}", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# {spec.name}", sanitize_html=True)
        with gr.Tabs():
            if pictures:
                with gr.Tab("Samples"):
                    browse.samples(root, spec, pictures)
                with gr.Tab("Left out"):
                    browse.left_out(root, pictures)
                with gr.Tab("Nearest"):
                    browse.neighbours_of(root, spec, pictures)
            with gr.Tab("Curves") as tab:
                browse.curves(root, tab)
            if spec.transformer:
                with gr.Tab("Studio"):
                    studio_tab(root, spec)
    return blocks


def reporting_mistakes(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wrap a handler so that a user's mistake becomes a note on the page, not a traceback."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise gr.Error(printable(str(error)), duration=15, print_exception=False) from None

    return call


def html_block(value: str = "") -> gr.HTML:
    """Return a place for HTML; its tiles trigger `select`, a hole that is marked in it `input`."""
    return gr.HTML(value, elem_classes="view", js_on_load=JS)
