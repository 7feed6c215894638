"""`dnd train-tokenizer`, `tokenize`, `decode`: images to codes and back."""

from __future__ import annotations

from typing import Annotated

import typer

from data_specs import storage
from infra.commands.options import (
    AddressOpt,
    MaxFailuresOpt,
    RanksOpt,
    RootOpt,
    SetOpt,
    SpecArg,
    WorkersOpt,
    compute_workers,
    open_root,
    ranks_here,
    totals,
)
from pipeline.workers import MAX_FAILURES

app = typer.Typer()


@app.command("train-tokenizer")
def train_tokenizer(root: RootOpt, spec: SpecArg = None, set_: SetOpt = None, ranks: RanksOpt = None) -> None:
    """Trains the RQ-VAE on the image shards (ROOT/tokenizer); resumes from its last checkpoint."""
    from tokenize_jobs.training import train_tokenizer as run

    resolved, root = open_root(spec, root, set_, "tokenizer")
    run(resolved, root, ranks=ranks_here(ranks, resolved.tokenizer.batch_size))


@app.command()
def tokenize(
    root: RootOpt,
    spec: SpecArg = None,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    max_failures: MaxFailuresOpt = MAX_FAILURES,
) -> None:
    """Image shards -> code shards (ROOT/codes/{train,val}), one to one."""
    from tokenize_jobs.job import tokenize as run

    resolved, root = open_root(spec, root, set_)
    for split, manifest in run(resolved, root, compute_workers(ray_address, workers, max_failures)).items():
        print(f"codes/{split}: {totals(manifest)}")


@app.command()
def decode(
    root: RootOpt,
    spec: SpecArg = None,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    max_failures: MaxFailuresOpt = MAX_FAILURES,
    codes: Annotated[str, typer.Option("--codes", help="code shard set, relative to the root")] = "codes/val",
    out: Annotated[
        str, typer.Option("--out", help="folder for the pictures, relative to the root")
    ] = "reconstructions/val",
) -> None:
    """Code shards -> pictures: an image shard set, PNGs, samples.npz and grid.png."""
    from tokenize_jobs.job import decode as run

    resolved, root = open_root(spec, root, set_)
    print(totals(run(resolved, root, codes, out, compute_workers(ray_address, workers, max_failures))))


@app.command()
def reconstruct(
    root: RootOpt,
    spec: SpecArg = None,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    split: Annotated[str, typer.Option("--split", help="split whose codes are decoded")] = "val",
    shown: Annotated[int, typer.Option("--shown", min=1, help="images in the picture")] = 8,
) -> None:
    """Reconstructions from 1 ... d codes a position: a picture with differences, and what each depth loses.

    LPIPS is measured where tokenizer.lpips_weights names its weights. ROOT/reconstructions/SPLIT, and
    ROOT/evaluation/reconstruction-SPLIT.json, which the report shows.
    """
    from infra.reconstruct import reconstruct as run

    resolved, root = open_root(spec, root, set_)
    for row in run(resolved, root, split, compute_workers(ray_address, workers), shown)["depths"]:
        size = f"{row['bits_per_pixel']:.3f} bits/pixel, {row['information_compression_ratio']:.2%} of the image"
        used = f"{row['codebook_share_used']:.0%} of the codebook used"
        psnr = "exact" if row["psnr"] is None else f"PSNR {row['psnr']:.2f} dB"
        lpips = f", LPIPS {row['lpips']:.4f}" if "lpips" in row else ""
        print(f"depth {row['depth']}: {psnr}, SSIM {row['ssim']:.4f}{lpips}, {size}, {used}")
    print(f"picture: {storage.join(root, 'reconstructions', split, 'depths.png')}")
