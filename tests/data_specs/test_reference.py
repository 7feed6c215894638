"""docs/keys.md is what the models say, and every key has its words."""

from __future__ import annotations

from pathlib import Path

from data_specs.reference import reference
from data_specs.source import Source

PAGE = Path(__file__).resolve().parents[2] / "docs/keys.md"


def test_the_page_is_what_the_models_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "write it anew: make keys"


def test_every_key_is_described_and_every_kind_of_source_has_its_section() -> None:
    text = reference()
    assert [line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |")] == []
    for kind in ("arxiv", "pdf", "text", "images"):
        assert kind in Source.kinds and f"## A source of kind {kind}\n" in text
    assert "| `micro_batch_size` | integer from 1 or null | `null` |" in text
