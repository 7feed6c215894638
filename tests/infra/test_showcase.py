"""The showcase's every stage at a size of seconds: its own sources, fonts, encoder and heads, fewer of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import dnd

from data_specs.sources.docstrings import DocstringSource, passages
from data_specs.spec import load_spec

SMALL = [
    *("render.sources.0.passages=24", "render.sources.1.documents=1", "render.val_share=0.2"),
    *("tokenizer.steps=3", "tokenizer.checkpoint_every=3"),
    *("transformer.width=32", "transformer.num_heads=2", "train.steps=2", "train.checkpoint_every=2"),
    *("train.batch_size=4", "train.validate_every=2", "train.sample_every=2", "train.validation_images=4"),
    *("sample.num=4", "sample.batch_size=4", "evaluate.reconstructions=4", "evaluate.ocr_images=4"),
]


def test_the_showcase_says_a_thousand_words_with_headings_and_lists() -> None:
    spec = load_spec("showcase")
    source = spec.render.sources[0]
    assert isinstance(source, DocstringSource) and len(spec.render.text.fonts) == 2
    texts = passages(source.model_copy(update={"passages": 4000}))
    assert len({word for text in texts for word in text.split() if word.isalpha()}) >= 900  # and some with hyphens
    assert any(text.startswith("# ") for text in texts) and any("\n- " in text for text in texts)


@pytest.mark.long
def test_every_stage_of_the_showcase_runs(tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    result = dnd("run", "showcase", "--root", tmp_path / "run", "--workers", 1, *settings)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "run/samples/default/grid.png").exists()
    summary = json.loads((tmp_path / "run/evaluation/summary.json").read_text())
    assert summary["bits_per_code"] > 0 and summary["reconstruction"]["psnr"] > 0
