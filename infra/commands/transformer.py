"""`dnd memory`: what a GPU must hold for each stage that computes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from data_specs.spec import Spec
from data_specs.text import say
from infra.commands.options import KnownRootOpt, SetOpt, SpecArg, open_spec

app = typer.Typer()
NEEDED = {
    "tokenizer": ("tokenizer",),
    "encode": ("tokenizer",),
    "train": ("transformer", "train"),
    "sample": ("transformer",),
}


@app.command()
def memory(
    spec: SpecArg = None,
    root: KnownRootOpt = None,
    stage: Annotated[
        Literal["tokenizer", "encode", "train", "sample"], typer.Option("--stage", help="what is to be computed")
    ] = "train",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that train together")] = 8,
    size: Annotated[str, typer.Option("--memory", help="memory of one GPU: 80GB, 141GB, 40GiB")] = "80GB",
    set_: SetOpt = None,
) -> None:
    """Predicts a GPU's memory by part and the batch that fits; of the transformer's training also the hours."""
    from train import memory

    resolved = open_spec(spec, root, set_, *NEEDED[stage])
    room = memory.parse_bytes(size)
    if stage == "tokenizer":
        lines = memory.tokenizer_table(resolved, gpus, room)
    elif stage == "encode":
        lines = memory.encoding_table(resolved, room)
    else:
        lines = _of_transformer(resolved, stage, gpus, room)
    say("\n".join(lines))


def _of_transformer(spec: Spec, stage: str, gpus: int, room: float) -> list[str]:
    from train import duration, memory
    from train.engine import config_of

    config = config_of(spec)
    if stage == "sample":
        return memory.sampling_table(spec, config, room)
    return [*memory.table(spec, config, gpus, room), *duration.table(spec, config, gpus)]
