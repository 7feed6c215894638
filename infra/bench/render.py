"""Rendering: the stage of one worker against a bare loop of PyMuPDF, or of Pillow, that makes the same pictures."""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pymupdf
from PIL import Image

from data_specs import storage
from data_specs.spec import Spec, load_spec
from infra.bench.rounds import Comparison, compare
from pipeline.job import render_stage
from pipeline.render import PNG_LEVEL, Renderer
from pipeline.renderers import Picture
from pipeline.renderers.pages import POINTS
from pipeline.renderers.text import render_text
from pipeline.sources import cut, prepare

KEEP_ALL = ["render.pages.min_words=0", "render.filters={}", "render.val_share=0", "render.documents_per_unit=100000"]
SOURCES = {
    "pages": "{kind: typeset, documents: 6, vocabulary: 200}",
    "text": "{kind: docstrings, passages: 1500, min_words: 6, max_words: 12, vocabulary: 200}",
}


def render(kind: str, preset: str, rounds: int) -> Comparison:
    """Pictures/s of `kind` "pages" or "text": documents to a committed shard, against drawing and PNG encoding alone.

    The bare loop reads no words, filters nothing, isolates nothing and writes no shard.
    """
    spec = load_spec(preset, [f"render.sources=[{SOURCES[kind]}]", *KEEP_ALL])
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as folder:
        sources = [prepare(source, storage.join(folder, "inputs")) for source in spec.render.sources]
        (_, unit), *_ = cut(spec.render, sources)
        renderer, numbers = Renderer(spec), iter(range(10**9))
        bare = {"pages": _bare_pages, "text": _bare_text}[kind]

        def ours() -> int:
            number = next(numbers)
            stage = render_stage(renderer, storage.join(folder, f"set{number}"), "bench")
            return int(stage(unit | {"unit": number})["written"])

        try:
            return compare(ours, lambda: _encode(bare(spec, Path(folder, "inputs"))), rounds)
        finally:
            renderer.close()


def _encode(pictures: Iterator[Image.Image]) -> int:
    made = 0
    for picture in pictures:
        picture.save(io.BytesIO(), "PNG", compress_level=PNG_LEVEL)
        made += 1
    return made


def _bare_pages(spec: Spec, inputs: Path) -> Iterator[Image.Image]:
    style, size, rng = spec.render.pages, spec.shape.image_size, random.Random(0)
    side, scale = spec.render.crop_size or size, style.dpi / POINTS
    for path in sorted(inputs.rglob("*.pdf")):
        with pymupdf.open(path) as document:
            for page in document:
                pixmap = page.get_pixmap(matrix=pymupdf.Matrix(scale, scale), colorspace=pymupdf.csRGB, alpha=False)
                image = np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)
                for _ in range(style.crops):
                    top, left = rng.randint(0, pixmap.height - side), rng.randint(0, pixmap.width - side)
                    crop = Image.fromarray(image[top : top + side, left : left + side])
                    yield crop if side == size else crop.resize((size, size), Image.Resampling.BICUBIC)


def _bare_text(spec: Spec, inputs: Path) -> Iterator[Image.Image]:
    """The renderer of one passage alone: no child, no shard."""
    size = spec.shape.image_size
    for path in sorted(inputs.rglob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            text = json.loads(line)["text"]
            for part in render_text(
                text, str(number), spec.render.text, spec.seed, spec.render.crop_size or size, size
            ):
                if isinstance(part, Picture):
                    yield Image.fromarray(part.image)
