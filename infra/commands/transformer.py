"""`dnd memory`: what a GPU must hold to train the transformer."""

from __future__ import annotations

from typing import Annotated

import typer

from data_specs.text import say
from infra.commands.options import KnownRootOpt, SetOpt, SpecArg, open_spec

app = typer.Typer()


@app.command()
def memory(
    spec: SpecArg = None,
    root: KnownRootOpt = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that train together")] = 8,
    size: Annotated[str, typer.Option("--memory", help="memory of one GPU: 80GB, 141GB, 40GiB")] = "80GB",
    set_: SetOpt = None,
) -> None:
    """Predicts a GPU's memory by part for every ZeRO stage, the micro batch that fits, and the schedule's hours."""
    from train import duration
    from train.engine import config_of
    from train.memory import parse_bytes, table

    resolved = open_spec(spec, root, set_, "transformer", "train")
    config = config_of(resolved)
    say("\n".join([*table(resolved, config, gpus, parse_bytes(size)), *duration.table(resolved, config, gpus)]))
