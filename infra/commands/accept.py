"""`dnd accept`: what a machine with a GPU is to show, measured beside what was estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_specs.text import say
from infra.commands.bench import find_benchmarks
from infra.commands.options import local_path

app = typer.Typer()


@app.command()
def accept(
    out: Annotated[Path, typer.Option("--out", help="folder that accept.json is written to", parser=local_path)],
    part: Annotated[list[str] | None, typer.Option("--part", help="only this part; may be repeated")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="small sizes on any device: shows that the parts work")] = False,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="a checkout of the authors' code, measured as well")
    ] = None,
) -> None:
    """Verifies and measures everything on a GPU, in parts of minutes (docs/gpu.md); ends with 1 on a miss."""
    find_benchmarks("accept")
    from benchmarks.accept.record import table
    from benchmarks.accept.run import accept as run

    found = run(part or [], tiny, reference)
    out.mkdir(parents=True, exist_ok=True)
    (out / "accept.json").write_bytes(found.to_json())
    for line in table(found.rows):
        say(line)
    counts = f"{len(found.rows)} rows, {len(found.misses)} misses"
    say(f"{found.device}, torch {found.torch}: {counts}; {out / 'accept.json'}")
    if found.misses:
        raise typer.Exit(1)
