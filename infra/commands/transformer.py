"""`dnd train`, `sample`: the transformer on codes."""

from __future__ import annotations

from typing import Annotated

import typer

from data_specs import storage
from data_specs.spec import load_spec
from infra.commands.options import (
    AddressOpt,
    RanksOpt,
    RootOpt,
    SetOpt,
    SpecArg,
    WorkersOpt,
    compute_workers,
    open_root,
    ranks_here,
)

app = typer.Typer()


@app.command()
def train(
    root: RootOpt,
    spec: SpecArg = None,
    set_: SetOpt = None,
    ranks: RanksOpt = None,
    deepspeed_config: Annotated[
        str | None, typer.Option("--deepspeed_config", help="JSON that adds to DeepSpeed's what the spec does not own")
    ] = None,
) -> None:
    """Trains the transformer with DeepSpeed (ROOT/transformer); resumes from its last checkpoint."""
    from train.job import train as run

    resolved, root = open_root(spec, root, set_, "transformer", "train")
    run(resolved, root, ranks=ranks_here(ranks, resolved.train.batch_size), deepspeed_config=deepspeed_config)


@app.command()
def sample(
    root: RootOpt,
    spec: SpecArg = None,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    num: Annotated[int | None, typer.Option("--num", min=1, help="images (default: the spec's)")] = None,
) -> None:
    """Draws images from the trained model: codes, pictures, samples.npz, grid.png (ROOT/samples/NAME)."""
    from tokenize_jobs.job import decode as run_decode
    from train.sample_job import refuse_misfit
    from train.sample_job import sample as run

    overrides = [*(set_ or []), *([f"sample.num={num}"] if num else [])]
    resolved, root = open_root(spec, root, overrides, "transformer")
    refuse_misfit(resolved, storage.join(root, resolved.tokenize.tokenizer, "tokenizer.json"))  # before hours of work
    use, out = compute_workers(ray_address, workers), f"samples/{resolved.sample.name}"
    run(resolved, root, use)
    run_decode(resolved, root, f"{out}/codes", out, use)
    print(f"pictures: {storage.join(root, out, 'grid.png')}")


@app.command()
def memory(
    spec: Annotated[str, typer.Argument(help="a preset (see `dnd presets`) or a YAML file", metavar="SPEC")],
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that train together")] = 8,
    size: Annotated[str, typer.Option("--memory", help="memory of one GPU: 80GB, 141GB, 40GiB")] = "80GB",
    set_: SetOpt = None,
) -> None:
    """Predicts a GPU's memory by part for every ZeRO stage, the micro batch that fits, and the schedule's hours."""
    from train import duration
    from train.engine import config_of
    from train.memory import parse_bytes, table

    resolved = load_spec(spec, set_ or [])
    resolved.require("transformer", "train")
    config = config_of(resolved)
    print("\n".join([*table(resolved, config, gpus, parse_bytes(size)), *duration.table(resolved, config, gpus)]))
