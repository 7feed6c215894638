"""`dnd verify`, `status`, `remove`, `look` and so on: what became of the documents, and what is to become of them."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from data_specs import storage
from data_specs.text import say
from infra.commands.options import JsonOpt, RootArg, RootCommand

app = typer.Typer()


@app.command(cls=RootCommand)
def verify(
    root: RootArg,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="remove what belongs to no receipt, and what killed processes left half written"),
    ] = False,
    truth: Annotated[
        bool, typer.Option("--truth", help="say of a sample of the pictures whether words stand on ink, and warn")
    ] = False,
) -> None:
    """Re-reads every byte of shard sets, checkpoints and weights; exit code 1 where something is wrong."""
    from data_specs.verify import clean_litter, clean_unfinished, find_shard_sets, verify_set
    from pipeline.removal import still_there
    from pipeline.truth import check_truth
    from tokenize_jobs.checkpoint import find_trainings, verify_training

    root = storage.absolute(root)
    faults = 0
    sets = find_shard_sets(root)
    for path in clean_unfinished(root) if clean else ():
        say(f"removed {path}")
    for set_uri in sets:
        for name in clean_litter(set_uri) if clean else []:
            say(f"removed {set_uri}/{name}")
        for fault in verify_set(set_uri):
            faults += 1
            say(fault)
        for fault in still_there(set_uri) if set_uri.startswith(storage.join(root, "images/")) else ():
            faults += 1
            say(fault)
        if truth and set_uri.startswith(storage.join(root, "images/")):
            for line in check_truth(set_uri):
                say(line)
    trainings = find_trainings(root)
    for folder in trainings:
        for fault in verify_training(folder):
            faults += 1
            say(fault)
    if not sets and not trainings:
        raise ValueError(f"{root}: there is neither a shard set nor a training here")
    say(f"{len(sets)} shard sets, {len(trainings)} trainings, {faults} faults")
    raise typer.Exit(1 if faults else 0)


@app.command(cls=RootCommand)
def remove(
    root: RootArg,
    ids: Annotated[str | None, typer.Option("--ids", help="file of document ids, one a line")] = None,
    samples: Annotated[
        str | None, typer.Option("--samples", help="file of samples, SPLIT/UNIT/KEY, one a line (dnd duplicates --out)")
    ] = None,
) -> None:
    """Takes documents or samples out of ROOT/images for good, with the codes and reconstructions made from them."""
    from pipeline.removal import remove as run

    if not ids and not samples:
        raise ValueError("give --ids FILE or --samples FILE")
    names = [[line for line in storage.read_text(uri).splitlines() if line] if uri else [] for uri in (ids, samples)]
    for line in run(storage.absolute(root), *names):
        say(line)


@app.command(cls=RootCommand)
def duplicates(
    root: RootArg,
    distance: Annotated[
        int, typer.Option("--distance", min=0, max=32, help="bits in which the hashes of near duplicates may differ")
    ] = 3,
    out: Annotated[str | None, typer.Option("--out", help="write all but the first of each group there")] = None,
) -> None:
    """Near duplicates over all image shards of a root, by perceptual hash; a group a line, the first one is kept."""
    from pipeline.duplicates import near_duplicates

    out = storage.absolute(out) if out else None
    surplus = list[str]()
    for group in near_duplicates(storage.absolute(root), distance):
        say(" ".join(group))
        surplus += group[1:]
    if out:
        storage.write_text(out, "".join(f"{name}\n" for name in surplus))
    say(f"{len(surplus)} near duplicates of others")


@app.command(cls=RootCommand)
def look(
    root: RootArg,
    shard_set: Annotated[str, typer.Option("--shard-set", help="image shard set, under the root")] = "images/train",
    shard: Annotated[int, typer.Option("--shard", min=0, help="number of the shard")] = 0,
    all_: Annotated[bool, typer.Option("--all", help="a sheet of every shard")] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="draw the boxes of words, those of clipped ones in red")
    ] = False,
) -> None:
    """A contact sheet of a shard: what was kept, and what was filtered or rejected, with the reasons."""
    from infra.look import look as run
    from infra.look import num_shards

    root = storage.absolute(root)
    number = num_shards(root, shard_set)
    for one in range(number) if all_ else [shard]:
        say(run(root, shard_set, one, boxes))
    if not all_ and number > 1:
        say(f"{shard_set} has {number} shards: --shard N shows another one, --all each of them")


@app.command(cls=RootCommand)
def card(root: RootArg) -> None:
    """ROOT/images/README.md: counts, sources, licences, attribution, the command and versions, to publish with it."""
    from infra.card import write_card

    say(write_card(storage.absolute(root)))


@app.command(cls=RootCommand)
def status(root: RootArg, as_json: JsonOpt = False) -> None:
    """Units done and failed, rejects by reason and rate of each shard set; works while jobs run, from any machine."""
    from infra.status import status_lines, status_of

    if as_json:
        say(json.dumps(status_of(storage.absolute(root)), indent=1))
        return
    empty = True
    for line in status_lines(storage.absolute(root)):
        say(line)
        empty = False
    if empty:
        say(f"{root}: nothing here", sys.stderr)
        raise typer.Exit(1)
