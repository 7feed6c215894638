"""`dnd render`, `verify`, `status`: documents to image shards, and what became of them."""

from __future__ import annotations

from typing import Annotated

import typer

from data_specs import storage
from infra.commands.options import AddressOpt, RootOpt, SetOpt, SpecArg, WorkersOpt, open_root, totals
from pipeline.runner import Workers

app = typer.Typer()


@app.command()
def render(
    spec: SpecArg,
    root: RootOpt,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
) -> None:
    """Documents -> image shards (ROOT/images/{train,val}). Run it again to finish what was interrupted."""
    from pipeline.job import render as run

    resolved, root = open_root(spec, root, set_)
    for split, manifest in run(resolved, root, Workers(ray_address, workers)).items():
        print(f"images/{split}: {totals(manifest)}")


@app.command()
def verify(
    root: RootOpt,
    clean: Annotated[bool, typer.Option("--clean", help="remove tars that belong to no receipt")] = False,
) -> None:
    """Re-reads every byte of every shard set against its receipts; exit code 1 where something is wrong."""
    from data_specs.verify import clean_litter, find_shard_sets, verify_set

    root, faults = storage.absolute(root), 0
    sets = find_shard_sets(root)
    for set_uri in sets:
        for name in clean_litter(set_uri) if clean else []:
            print(f"removed {set_uri}/{name}")
        for fault in verify_set(set_uri):
            faults += 1
            print(fault)
    if not sets:
        raise ValueError(f"{root}: there is no shard set here")
    print(f"{len(sets)} shard sets, {faults} faults")
    raise typer.Exit(1 if faults else 0)


@app.command()
def status(root: RootOpt) -> None:
    """Units done and failed, rejects by reason and rate of each shard set; works while jobs run, from any machine."""
    from infra.status import status_lines

    for line in status_lines(storage.absolute(root)):
        print(line)
