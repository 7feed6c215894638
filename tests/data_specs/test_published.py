"""docs/published.md against the presets: what the table says a preset holds, it holds."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest
import yaml

from data_specs.spec import load_spec

TABLE = Path(__file__).parents[2] / "docs/published.md"


def rows() -> list[tuple[str, str, str]]:
    """(preset, key, value) of each row that names a key."""
    cells = [[cell.strip() for cell in line.split("|")] for line in TABLE.read_text().splitlines() if ": " in line]
    return [(*row[3].split(": "), row[4]) for row in cells if len(row) == 7]  # type: ignore[misc]


@pytest.mark.parametrize(("preset", "key", "value"), rows())
def test_the_table_says_what_the_preset_holds(preset: str, key: str, value: str) -> None:
    held = reduce(lambda part, name: part[name], key.split("."), load_spec(preset).tree())
    assert held == yaml.safe_load(value)


def test_every_published_preset_is_in_the_table() -> None:
    assert {row[0] for row in rows()} >= {
        "imagenet_16x16x2",
        "imagenet_16x16x2_xxxl",
        "imagenet512_32x32x2",
        "text_image_24x24x1",
        "text_image_plain",
        "arxiv_image_16x16x8",
    }
    assert len(rows()) > 30
