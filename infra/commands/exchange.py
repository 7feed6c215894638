"""`dnd import`, `dnd export`: the released checkpoints, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_specs import storage
from data_specs.spec import SIZES, load_spec
from infra.commands.options import RootOpt

app = typer.Typer()
import_ = typer.Typer(no_args_is_help=True, help="Released checkpoints (.pt) into a root.")
export = typer.Typer(no_args_is_help=True, help="A root's weights as released checkpoints (.pt).")
app.add_typer(import_, name="import")
app.add_typer(export, name="export")

PathArg = Annotated[Path, typer.Argument(metavar="PATH.pt", help="the released checkpoint")]
OutArg = Annotated[Path, typer.Argument(metavar="PATH.pt", help="file to write")]


@import_.command("tokenizer")
def import_tokenizer(
    path: PathArg,
    root: RootOpt,
    config: Annotated[Path | None, typer.Option("--config", help="its config.yaml (default: beside it)")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="take the moving average of the weights")] = False,
) -> None:
    """A released RQ-VAE into ROOT/tokenizer."""
    from tokenize_jobs.weights import import_tokenizer as read
    from tokenize_jobs.weights import save_tokenizer

    model = read(path, config or path.with_name("config.yaml"), ema=ema)
    folder = storage.join(storage.absolute(root), "tokenizer")
    _refuse_used(folder)
    with storage.writable_folder(folder) as local:
        save_tokenizer(model, local)
    print(f"{folder}: codes {list(model.config.code_shape)}, codebook of {model.config.codebook_size}")


@import_.command("transformer")
def import_transformer(
    path: PathArg,
    root: RootOpt,
    preset: Annotated[str, typer.Option("--preset", help="preset or YAML file that it was trained by")],
    size: Annotated[
        str | None, typer.Option("--size", help="XXL, XXXL …  (default: what the file's weights say)")
    ] = None,
) -> None:
    """A released transformer into ROOT/transformer; refuses one that is not of this preset and size."""
    from train.engine import config_of
    from train.weights import import_transformer as read
    from train.weights import size_of_released

    spec = load_spec(preset, [f"transformer.size={size}"] if size else [])
    found = size_of_released(path) if not size and spec.transformer.size else None
    if found and SIZES[found][0] == spec.transformer.dimensions[0]:  # XXL and XXXL share their presets
        size, spec = found, load_spec(preset, [f"transformer.size={found}"])
    folder = storage.join(storage.absolute(root), "transformer")
    _refuse_used(folder)
    with storage.writable_folder(folder) as local:
        read(path, local, config_of(spec))
    print(f"{folder}: {size or spec.transformer.size} of {preset}")


@export.command("tokenizer")
def export_tokenizer(
    path: OutArg,
    root: RootOpt,
    config: Annotated[Path | None, typer.Option("--config", help="config.yaml to write (default: beside it)")] = None,
) -> None:
    """ROOT/tokenizer as the released RQ-VAEs are: a .pt file and its config.yaml."""
    from tokenize_jobs.weights import export_tokenizer as write
    from tokenize_jobs.weights import load_tokenizer

    folder = storage.join(storage.absolute(root), "tokenizer")
    write(load_tokenizer(folder), path, config or path.with_name("config.yaml"))
    print(path)


@export.command("transformer")
def export_transformer(path: OutArg, root: RootOpt) -> None:
    """ROOT/transformer as the released ones are: weights under `model`, their moving average under `ema`."""
    from train.weights import export_transformer as write

    write(storage.join(storage.absolute(root), "transformer"), path)
    print(path)


def _refuse_used(folder: str) -> None:
    """Never over something that was trained or imported before."""
    if next(iter(storage.list_files(folder)), None):
        raise ValueError(f"{folder}: there is something already; choose another --root or remove it first")
