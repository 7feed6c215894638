"""`dnd bench …`: ours against a plain baseline in one process, a ratio; `dnd accept`: what a GPU is to show."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_specs.text import say
from infra.commands.options import SetOpt, SpecCommand, local_path

if TYPE_CHECKING:
    from benchmarks.rounds import Comparison

CHECKOUT = Path(__file__).parents[2]

app = typer.Typer()
bench = typer.Typer(no_args_is_help=True, help="Ours against a plain baseline, in turns in one process: a ratio.")
app.add_typer(bench, name="bench")

SizesArg = Annotated[str, typer.Argument(metavar="[SPEC]", help="preset or YAML file whose sizes are used")]
RoundsOpt = Annotated[int, typer.Option("--rounds", min=1, help="how often each is measured, in turns")]


@bench.callback()
def _before() -> None:
    find_benchmarks("bench")


def find_benchmarks(command: str) -> None:
    """Make `benchmarks` importable, which is no part of the installed package.

    Raises:
        ValueError: this is no checkout, where they lie.
    """
    if not (CHECKOUT / "benchmarks").is_dir():
        raise ValueError(
            f"dnd {command} needs a checkout, and {CHECKOUT} is none: clone the repository, then there "
            f"make .venv/installed && .venv/bin/dnd {command}"
        )
    sys.path.insert(0, str(CHECKOUT))


@bench.command(cls=SpecCommand)
def render(
    spec: Annotated[
        str | None,
        typer.Argument(metavar="[SPEC]", help="preset or YAML file whose sizes are used (default: the published)"),
    ] = None,
    kind: Annotated[
        Literal["pages", "text", "markdown"], typer.Option(help="PDF pages, plain passages, or Markdown")
    ] = "pages",
    pdfs: Annotated[
        Path | None, typer.Option(help="folder of your PDFs, of each its first three pages (default: typeset)")
    ] = None,
    rounds: RoundsOpt = 5,
) -> None:
    """Documents to a committed shard in one worker, against bare loops that draw and encode the same pictures."""
    from benchmarks.render import PUBLISHED
    from benchmarks.render import render as run

    for what, result in run(kind, spec or PUBLISHED[kind], rounds, pdfs).items():
        ours, _, baseline = what.partition(" x ")
        _report(f"render {kind}, {ours}", "pictures", {baseline: result})


@bench.command(cls=SpecCommand)
def tokenize(spec: SizesArg = "demo", rounds: RoundsOpt = 5) -> None:
    """Image shard to committed code shard in one worker, against the bare encoder on decoded images."""
    from benchmarks.tokenize import tokenize as run

    _report("tokenize", "images", {"the bare encoder": run(spec, rounds)})


@bench.command(cls=SpecCommand)
def load(spec: SizesArg = "imagenet_16x16x2", rounds: RoundsOpt = 5) -> None:
    """Batches of codes in random order, against webdataset's own reader, a lean decode, a plain memory map, litdata."""
    from benchmarks.load import load as run

    _report("load", "samples", run(spec, rounds))


@bench.command(cls=SpecCommand)
def train(
    spec: SizesArg = "demo",
    rounds: RoundsOpt = 5,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="also against a compiled step; needs a C++ compiler, and a minute")
    ] = False,
    set_: SetOpt = None,
) -> None:
    """Compare a training step and all around it, as the preset says, to a bare PyTorch step of the same model."""
    from benchmarks.train import train as run

    _report("train", "images", run(spec, rounds, compiled, set_ or []))


@bench.command(cls=SpecCommand)
def sample(
    spec: SizesArg = "demo",
    rounds: RoundsOpt = 5,
    reference: Annotated[Path | None, typer.Option(help="a checkout of the authors' code, measured as well")] = None,
    set_: SetOpt = None,
) -> None:
    """Our decoder against the plain eager loop, and the authors' own code; same weights, dtype and batch.

    Batch, guidance and dtype are the spec's: --set sample.batch_size=1 --set sample.guidance=2 --set sample.dtype=int8.
    """
    from benchmarks.sample import sample as run

    result = run(spec, rounds, set_ or [], reference)
    rate = next(iter(result.comparisons.values())).ours
    steps = rate / result.batch * result.steps
    limit = result.bandwidth / result.step_bytes
    say(
        f"ours: {rate * result.codes:.4g} tokens/s, {1000 / steps:.4g} ms a step, {steps / limit:.0%} of what memory "
        f"allows ({result.step_bytes / 1e6:.0f} MB a step at {result.bandwidth / 1e9:.1f} GB/s)"
    )
    if result.agreement is not None:
        say(f"its likeliest codes are those of float32 in {result.agreement:.1%} (random weights: the hardest case)")
    _report("sample", "images", result.comparisons)


def _report(what: str, unit: str, results: Mapping[str, Comparison]) -> None:
    """Print for each baseline the ratio, its range over the rounds, and the rates that it is of."""
    for baseline, one in results.items():
        say(
            f"{what}: {one.ratio:.2f} x {baseline} ({min(one.ratios):.2f}-{max(one.ratios):.2f} in {len(one.ratios)} "
            f"rounds; {one.ours:.4g} against {one.baseline:.4g} {unit}/s here)"
        )


@app.command()
def accept(
    out: Annotated[Path, typer.Option(help="folder that accept.json is written to", parser=local_path)],
    part: Annotated[list[str] | None, typer.Option(help="only this part; may be repeated")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="small sizes on any device: shows that the parts work")] = False,
    reference: Annotated[Path | None, typer.Option(help="a checkout of the authors' code, measured as well")] = None,
) -> None:
    """Verify and measure everything on a GPU, in parts of minutes (docs/gpu.md); exit with 1 on a miss."""
    find_benchmarks("accept")
    from benchmarks.accept.run import accept as run

    found = run(part or [], tiny, reference, out)
    counts = f"{len(found.rows)} rows, {len(found.misses)} misses"
    say(f"{found.device}, torch {found.torch}: {counts}; {out / 'accept.json'}")
    if found.misses:
        raise typer.Exit(1)
