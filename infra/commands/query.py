"""`dnd query`: samples of a shard set by what its tables say of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_specs import storage
from data_specs.text import printable, say
from infra.commands.options import RootArg, RootCommand

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer()
SHOWN = ("key", "split", "unit", "document", "page", "num_words", "ink", "script", "licence", "text")
WIDTH = 40  # characters of a cell


@app.command(cls=RootCommand)
def query(
    root: RootArg,
    expression: Annotated[str, typer.Argument(help="in SQL: \"licence = 'CC-BY-4.0' and num_words > 50\"")] = "true",
    shard_set: Annotated[str, typer.Option("--shard-set", help="shard set, under the root")] = "images/train",
    set_: Annotated[str | None, typer.Option("--set", hidden=True)] = None,
    format_: Annotated[
        Literal["table", "ids", "json"], typer.Option("--format", help="ids: as `dnd remove --samples` takes them")
    ] = "table",
    limit: Annotated[int, typer.Option("--limit", min=0, help="rows that a table shows; 0: all")] = 50,
) -> None:
    """Lists the samples of a shard set that match an expression over the columns of its tables."""
    from data_specs.manifest import read_manifest
    from data_specs.table import query as run

    set_uri = storage.join(storage.absolute(root), set_ or shard_set)
    found = run(set_uri, read_manifest(storage.join(set_uri, "manifest.json")).shardlist, expression)
    if format_ == "ids":
        for row in found.select(["split", "unit", "key"]).to_pylist():
            say(f"{row['split']}/{row['unit']}/{row['key']}")
    elif format_ == "json":
        for row in found.to_pylist():
            say(json.dumps(row, ensure_ascii=True))
    else:
        _print_table(found, limit or len(found))


def _print_table(found: pa.Table, limit: int) -> None:
    rows = found.select(SHOWN).slice(0, limit).to_pylist()
    cells = [SHOWN, *(tuple(printable(_cell(value))[:WIDTH] for value in row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    say(f"{len(found)} samples" + (f", {len(rows)} shown" if len(rows) < len(found) else ""))


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
