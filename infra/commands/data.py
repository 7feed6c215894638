"""`dnd verify`, `status`, `remove`, `look` and so on: what became of the documents, and what is to become of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_specs import storage
from data_specs.root import name_under
from data_specs.text import printable, say
from infra.commands.options import JsonOpt, RootArg, RootCommand

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer()
SHOWN = ("key", "split", "unit", "document", "page", "num_words", "ink", "script", "licence", "text")  # by `query`
WIDTH = 40  # characters of a cell


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
    """Re-reads every byte of shard sets, checkpoints and weights, and all records; exit code 1 where one is wrong."""
    from data_specs.verify import clean_unfinished, find_shard_sets, verify_set
    from pipeline.removal import check_removed
    from pipeline.truth import check_truth
    from tokenize_jobs.checkpoint import find_trainings, verify_training

    root = storage.absolute(root)
    faults = 0
    sets = find_shard_sets(root)
    for path in clean_unfinished(root) if clean else ():
        say(f"removed {path}")
    for set_uri in sets:
        for line in _cleaned(root, set_uri) if clean else ():
            say(line)
        rendered = set_uri.startswith(storage.join(root, "images/"))
        for fault in chain(verify_set(set_uri), check_removed(set_uri) if rendered else ()):
            faults += 1
            say(fault)
        for line in check_truth(set_uri) if truth and rendered else ():
            say(line)
    trainings = find_trainings(root)
    for fault in chain(*map(verify_training, trainings), _damaged_records(root), _links_to_nothing(root)):
        faults += 1
        say(fault)
    if not sets and not trainings:
        raise ValueError(f"{root}: there is neither a shard set nor a training here")
    say(f"{len(sets)} shard sets, {len(trainings)} trainings, {faults} faults")
    raise typer.Exit(1 if faults else 0)


def _cleaned(root: str, set_uri: str) -> Iterator[str]:
    """Remove a set's litter, unless a job writes there: some of that has its receipt in a moment. Yield what became."""
    from data_specs.lease import hold
    from data_specs.verify import clean_litter
    from pipeline.stages import leased_folder

    home = storage.join(root, leased_folder(name_under(root, set_uri))) if set_uri != root else root.rpartition("/")[0]
    try:
        with hold(home, "dnd verify --clean"):
            yield from (f"removed {set_uri}/{name}" for name in clean_litter(set_uri))
    except ValueError as error:
        yield f"{set_uri} is not cleaned: {error}"


def _damaged_records(root: str) -> Iterator[str]:
    """Yield a line for each unreadable record outside shard sets and checkpoints, and each unreadable samples.npz."""
    for file in storage.list_files(root):
        if not _is_foreign(root, file.uri):
            try:
                _read_record(root, file.uri)
            except ValueError as error:
                yield str(error)


def _read_record(root: str, uri: str) -> None:
    """Read a file as the record that its name says it holds; a file of any other name is passed over.

    Raises:
        ValueError: it does not hold that.
    """
    from data_specs.records import CodeHistory, Identity, LogRow, ReadingOrder, Record
    from data_specs.spec import parse_spec
    from tokenize_jobs import weights as tokenizers
    from train import weights as transformers
    from train.evaluation.results import read_result, read_summary, summary_uri

    records: dict[str, type[Record]] = {"code.json": CodeHistory, "stage.json": Identity, "order.json": ReadingOrder}
    configs = {"tokenizer.json": tokenizers.read_config, "transformer.json": transformers.read_config}
    folder, _, name = uri.rpartition("/")
    if name == "spec.yaml":
        parse_spec(storage.read_bytes(uri), uri)
    elif name in records:
        records[name].parse(storage.read_bytes(uri), uri)
    elif name == "metrics.jsonl":
        for line in storage.read_bytes(uri).splitlines():
            LogRow.parse(line, uri)
    elif name in configs:
        configs[name](folder)
    elif uri == summary_uri(root):
        read_summary(root)
    elif folder == storage.join(root, "evaluation") and name.endswith(".json"):
        read_result(uri)
    elif name == "samples.npz":
        _read_pictures(uri)


def _links_to_nothing(root: str) -> Iterator[str]:
    """Yield a line for each: what it named may be a set, on a disk that is not there now."""
    from data_specs.local_files import skipped_paths

    for path, what in () if storage.is_remote(root) else skipped_paths(root):
        if what == "link to nothing" and not _is_foreign(root, path):
            yield f"{path}: {what}"


def _is_foreign(root: str, uri: str) -> bool:
    """Whether others wrote what lies there: sources, and wandb, whose links name logs of other machines."""
    return uri.startswith(storage.join(root, "inputs/")) or "/wandb/" in uri.removeprefix(root)


def _read_pictures(uri: str) -> None:
    """Read a samples.npz to its end, where its checksum stands.

    Raises:
        ValueError: one that is damaged or cut.
    """
    from train.evaluation.sources import open_images

    pictures = open_images(uri)
    for _ in pictures.batches(0, len(pictures), 64):
        pass
    decoded = storage.join(uri.rpartition("/")[0], "images", "manifest.json")
    if storage.exists(decoded) and len(pictures) != len(open_images(decoded)):
        raise ValueError(f"{uri}: holds {len(pictures)} pictures, {decoded} others: decode again")


@app.command(cls=RootCommand)
def remove(
    root: RootArg,
    ids: Annotated[str | None, typer.Option(help="file of document ids, one per line")] = None,
    samples: Annotated[
        str | None, typer.Option(help="file of samples, SPLIT/UNIT/KEY, one per line (dnd duplicates --out)")
    ] = None,
) -> None:
    """Remove documents or samples from ROOT/images for good, with the codes and reconstructions made from them."""
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
        int, typer.Option(min=0, max=32, help="bits in which the hashes of near duplicates may differ")
    ] = 3,
    out: Annotated[str | None, typer.Option(help="write all but the first of each group there")] = None,
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
    shard_set: Annotated[str, typer.Option(help="image shard set, under the root")] = "images/train",
    shard: Annotated[int, typer.Option(min=0, help="number of the shard")] = 0,
    all_: Annotated[bool, typer.Option("--all", help="a sheet of every shard")] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="draw the boxes of words, those of clipped ones in red")
    ] = False,
) -> None:
    """Draw a contact sheet of a shard: what was kept, and what was filtered or rejected, with the reasons."""
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


@app.command(cls=RootCommand)
def query(
    root: RootArg,
    expression: Annotated[str, typer.Argument(help="in SQL: \"licence = 'CC-BY-4.0' and num_words > 50\"")] = "true",
    shard_set: Annotated[str, typer.Option(help="shard set, under the root")] = "images/train",
    set_: Annotated[str | None, typer.Option("--set", hidden=True)] = None,
    format_: Annotated[
        Literal["table", "ids", "json"], typer.Option("--format", help="ids: as `dnd remove --samples` takes them")
    ] = "table",
    limit: Annotated[int, typer.Option(min=0, help="rows that a table shows; 0: all")] = 50,
) -> None:
    """List the samples of a shard set that match an expression over the columns of its tables."""
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


@app.command(cls=RootCommand)
def view(
    root: RootArg,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen at; 0: any that is free")] = 7860,
    host: Annotated[
        str, typer.Option(help="address to listen at; beyond this machine the page asks for a token")
    ] = "127.0.0.1",
) -> None:
    """Show a root in the browser: samples, codes, what was left out, neighbours, curves; and a studio."""
    from infra.view.server import serve

    serve(storage.absolute(root), host, port)
