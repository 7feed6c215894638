"""`dnd import`, `dnd export`: the released checkpoints, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_specs import storage
from data_specs.text import say
from infra.commands.options import RootArg, RootCommand, RootOpt, local_path

app = typer.Typer()
import_ = typer.Typer(no_args_is_help=True, help="Released checkpoints (.pt) into a root.")
export = typer.Typer(no_args_is_help=True, help="A root's weights as released checkpoints (.pt).")
app.add_typer(import_, name="import")
app.add_typer(export, name="export")

PathArg = Annotated[
    str, typer.Argument(metavar="PATH", help="the released checkpoint: a .pt file, its folder, or hf://owner/repo/path")
]
OutArg = Annotated[Path, typer.Argument(metavar="PATH.pt", help="file to write", parser=local_path)]
ConfigOpt = Annotated[
    Path | None, typer.Option("--config", help="its config.yaml (default: beside it)", parser=local_path)
]
SpecOpt = Annotated[
    str | None,
    typer.Option("--spec", "--preset", help="preset or YAML file that it was trained by (default: ROOT/spec.yaml)"),
]
SizeOpt = Annotated[str | None, typer.Option("--size", help="XXL, XXXL …  (default: what the file's weights say)")]


@import_.command("tokenizer")
def import_tokenizer(
    path: PathArg,
    root: RootOpt,
    config: ConfigOpt = None,
    ema: Annotated[bool, typer.Option("--ema", help="take the moving average of the weights")] = False,
) -> None:
    """Import a released RQ-VAE into ROOT/tokenizer."""
    from infra import pretrained as run
    from infra.hub import fetch

    root = storage.absolute(root)
    say(run.import_tokenizer(run.checkpoint_in(fetch(path).path), config, root, ema))


@import_.command("transformer")
def import_transformer(path: PathArg, root: RootOpt, spec: SpecOpt = None, size: SizeOpt = None) -> None:
    """Import a released transformer into ROOT/transformer; refuse one that is not of this preset and size."""
    from infra import pretrained as run
    from infra.hub import fetch

    root = storage.absolute(root)
    say(run.import_transformer(run.checkpoint_in(fetch(path).path), spec, size, root))


@app.command()
def pretrained(
    name: Annotated[str | None, typer.Argument(help="a release (none: list them) or hf://owner/repo")] = None,
    root: Annotated[str | None, typer.Option(help="a new root for both halves and eight pictures")] = None,
    size: Annotated[str | None, typer.Option(help="XXL or XXXL (default: the first that there is)")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="another repository, or a local copy of it, with the same folders")
    ] = None,
) -> None:
    """List the authors' released models, or fetch one by name (or what `dnd push` published) and draw with it.

    Weights and reference batches that evaluation takes are listed and fetched as well: into the cache, without a root.
    """
    from infra import pretrained as run
    from infra.weights import REGISTRY, fetch_weights, list_weights

    if name is None:
        for release in run.RELEASES:
            say(f"{release.preset:22} transformer {', '.join(release.transformers) or 'none':10} {release.figures}")
        say("\nFor evaluation:\n" + "\n".join(list_weights()))
        return
    if name in REGISTRY:
        say(fetch_weights(name))
        return
    if root is None:
        raise ValueError(f"dnd pretrained {name}: give --root, a new folder for it")
    for line in run.pretrained(name, size, storage.absolute(root), source or run.RELEASED):
        say(line)


@app.command(cls=RootCommand)
def push(
    root: RootArg,
    repo: Annotated[str, typer.Option("--to", help="owner/name of a repository on the hub")],
    shards: Annotated[bool, typer.Option("--shards", help="publish image and code shards as well")] = False,
    public: Annotated[bool, typer.Option("--public", help="a new repository can be seen by all")] = False,
) -> None:
    """Publish a root on the Hugging Face hub; `dnd pretrained hf://owner/name --root NEW` reads it."""
    from infra.hub import push as run

    say(f"published: {run(storage.absolute(root), repo, shards, private=not public)}")


@export.command("tokenizer")
def export_tokenizer(path: OutArg, root: RootOpt, config: ConfigOpt = None) -> None:
    """ROOT/tokenizer as the released RQ-VAEs are: a .pt file and its config.yaml."""
    from tokenize_jobs.weights import export_tokenizer as write
    from tokenize_jobs.weights import load_tokenizer

    folder = storage.join(storage.absolute(root), "tokenizer")
    write(load_tokenizer(folder), path, config or path.with_name("config.yaml"))
    say(str(path))


@export.command("transformer")
def export_transformer(path: OutArg, root: RootOpt) -> None:
    """ROOT/transformer as the released ones are: weights under `model`, their moving average under `ema`."""
    from train.weights import export_transformer as write

    write(storage.join(storage.absolute(root), "transformer"), path)
    say(str(path))
