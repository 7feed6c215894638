"""The `dnd` command: each stage runs alone and resumes. SPEC is a preset or a file, --root a folder or s3:// URI."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_specs import storage
from data_specs.spec import Spec, load_spec, presets
from pipeline.runner import UnitsFailed, Workers

app = typer.Typer(
    name="dnd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From PDFs, text or images to a trained DnD-Transformer and its pictures. Try: dnd demo --root runs/demo",
)
SpecArg = Annotated[str, typer.Argument(help="a preset (see `dnd presets`) or a YAML file", metavar="SPEC")]
RootOpt = Annotated[
    str, typer.Option("--root", help="where everything of this run lies: a folder or s3://bucket/prefix")
]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", help="override by dotted key: --set train.micro_batch_size=8")
]
AddressOpt = Annotated[
    str | None, typer.Option("--ray-address", help="Ray cluster to use (default: embedded, or RAY_ADDRESS)")
]
WorkersOpt = Annotated[
    int | None, typer.Option("--workers", min=1, help="number of workers (default: one a CPU or GPU)")
]
RanksOpt = Annotated[
    int, typer.Option("--ranks", min=1, help="training processes on this machine (GPUs, or CPU ranks)")
]


def _open(spec: str, root: str, overrides: list[str] | None) -> tuple[Spec, str]:
    """Reads the spec, makes the root absolute, and writes the resolved spec into it."""
    resolved, root = load_spec(spec, overrides or []), storage.absolute(root)
    uri = storage.join(root, "spec.yaml")
    if not storage.exists(uri) or storage.read_text(uri) != resolved.to_yaml():
        storage.write_text(uri, resolved.to_yaml())
    return resolved, root


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

    resolved, root = _open(spec, root, set_)
    for split, manifest in run(resolved, root, Workers(ray_address, workers)).items():
        print(f"images/{split}: {_totals(manifest)}")


@app.command("train-tokenizer")
def train_tokenizer(spec: SpecArg, root: RootOpt, set_: SetOpt = None) -> None:
    """Trains the RQ-VAE on the image shards (ROOT/tokenizer); resumes from its last checkpoint."""
    from tokenize_jobs.fit import fit

    resolved, root = _open(spec, root, set_)
    fit(resolved, root)


@app.command()
def tokenize(
    spec: SpecArg,
    root: RootOpt,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
) -> None:
    """Image shards -> code shards (ROOT/codes/{train,val}), one to one."""
    from tokenize_jobs.job import tokenize as run

    resolved, root = _open(spec, root, set_)
    for split, manifest in run(resolved, root, _workers(ray_address, workers)).items():
        print(f"codes/{split}: {_totals(manifest)}")


@app.command()
def train(spec: SpecArg, root: RootOpt, set_: SetOpt = None, ranks: RanksOpt = 1) -> None:
    """Trains the transformer with DeepSpeed (ROOT/transformer); resumes from its last checkpoint."""
    from train.job import train as run

    resolved, root = _open(spec, root, set_)
    run(resolved, root, ranks=ranks)


@app.command()
def sample(
    spec: SpecArg,
    root: RootOpt,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    num: Annotated[int | None, typer.Option("--num", min=1, help="images (default: the spec's)")] = None,
) -> None:
    """Draws images from the trained model: codes, pictures, samples.npz, grid.png (ROOT/samples/NAME)."""
    from tokenize_jobs.job import decode as run_decode
    from train.sample_job import sample as run

    resolved, root = _open(spec, root, [*(set_ or []), *([f"sample.num={num}"] if num else [])])
    use, out = _workers(ray_address, workers), f"samples/{resolved.sample.name}"
    run(resolved, root, use)
    run_decode(resolved, root, f"{out}/codes", out, use)
    print(f"pictures: {storage.join(root, out, 'grid.png')}")


@app.command()
def decode(
    spec: SpecArg,
    root: RootOpt,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    codes: Annotated[str, typer.Option("--codes", help="code shard set, relative to the root")] = "codes/val",
    out: Annotated[
        str, typer.Option("--out", help="folder for the pictures, relative to the root")
    ] = "reconstructions/val",
) -> None:
    """Code shards -> pictures: an image shard set, PNGs, samples.npz and grid.png."""
    from tokenize_jobs.job import decode as run

    resolved, root = _open(spec, root, set_)
    print(_totals(run(resolved, root, codes, out, _workers(ray_address, workers))))


@app.command()
def evaluate(spec: SpecArg, root: RootOpt, set_: SetOpt = None) -> None:
    """Scores reconstructions and samples (ROOT/evaluation/summary.json)."""
    from train.evaluation.summary import summarise

    resolved, root = _open(spec, root, set_)
    print(f"evaluation: {summarise(resolved, root)}")


@app.command()
def report(root: RootOpt) -> None:
    """Writes one self-contained page about everything under the root (ROOT/report/index.html)."""
    from infra.report.report import write_report

    print(f"report: {write_report(storage.absolute(root))}")


@app.command()
def run(
    spec: SpecArg,
    root: RootOpt,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    ranks: RanksOpt = 1,
) -> None:
    """All stages in order, from documents to the report; finished ones are recognised and passed over."""
    from infra.demo import run_all

    resolved, root = _open(spec, root, set_)
    print(f"report: {run_all(resolved, root, _workers(ray_address, workers), ranks)}")


@app.command()
def demo(
    root: RootOpt = "runs/demo",
    preset: Annotated[str, typer.Option("--preset", help="preset to run")] = "demo",
    pdfs: Annotated[Path | None, typer.Option("--pdfs", help="folder of PDFs to use instead of typeset ones")] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="passages (JSON Lines) to use instead of docstrings")
    ] = None,
    set_: SetOpt = None,
) -> None:
    """The whole way on this machine, on texts that every machine has; prints where the report is."""
    from infra.demo import demo_overrides, run_all

    resolved, root = _open(preset, root, [*demo_overrides(preset, pdfs, text), *(set_ or [])])
    print(f"report: {run_all(resolved, root, Workers(), 1)}")


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


@app.command("presets")
def list_presets() -> None:
    """Names the presets, with what each is."""
    from data_specs.spec import PRESETS

    for name in presets():
        about = (PRESETS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
        print(f"{name:24} {about}")


def _workers(address: str | None, number: int | None) -> Workers:
    """Workers for stages that compute: one GPU each where there are GPUs."""
    import torch

    return Workers(address, number, gpus=1.0 if torch.cuda.is_available() else 0.0)


def _totals(manifest: dict) -> str:  # type: ignore[type-arg]
    total = manifest["totals"]
    return (
        f"{total['written']} samples in {len(manifest['shardlist'])} shards "
        f"({total['filtered']} filtered, {total['rejected']} rejected)"
    )


def main() -> None:
    """Runs the command; a user's mistake ends in one line and exit code 1, never in a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app(standalone_mode=True)
    except (ValueError, OSError, UnitsFailed) as error:
        print(f"dnd: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
    return str(error)


if __name__ == "__main__":
    main()
