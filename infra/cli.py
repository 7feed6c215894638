"""The `dnd` command: each stage runs alone and resumes. SPEC is a preset or a file, --root a folder or s3:// URI."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import infra.stages  # noqa: F401
from data_specs.spec import SECTIONS
from data_specs.text import say, start_log
from infra.commands import bench, clusters, data, evaluation, exchange, specs
from infra.commands.options import (
    AddressOpt,
    FromOpt,
    RanksOpt,
    RootOpt,
    SetOpt,
    SpecArg,
    WorkersOpt,
    open_root,
    ranks_here,
    with_gpus,
)
from infra.commands.stages import add_stages, take_over
from pipeline.stages import find
from pipeline.workers import UnitsFailed, Workers

CHILDREN = {  # what every process under a command inherits, where the user has not said otherwise
    "PYTHONSAFEPATH": "1",  # nothing is imported from the working directory, where a user may have a train.py
    "GOMP_SPINCOUNT": "10000",  # threads that wait soon sleep; beside a busy process two that spin take 8 times longer
}
MODULES = {  # of the packages that pyproject.toml names under each extra, as Python imports them
    "render": (
        *("pymupdf", "pymupdf_fonts", "pypdfium2", "datasets", "webdataset", "defusedxml", "markdown_it"),
        "duckdb",
    ),
    "train": ("torch", "deepspeed", "einops", "safetensors", "wandb"),
    "evaluate": ("scipy", "rouge_score", "rapidfuzz", "transformers", "torch_fidelity", "rapidocr", "onnxruntime"),
    "view": ("gradio", "uvicorn"),
}
app = typer.Typer(
    name="dnd",
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},  # --deepspeed_config, as theirs
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From PDFs, text or images to a trained DnD-Transformer and its pictures. Try: dnd demo --root runs/demo",
)
add_stages(app)
for module in (specs, data, clusters, evaluation, exchange, bench):
    app.add_typer(module.app)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True)] = False,
) -> None:
    """Take the options of `dnd` itself."""
    if version:
        from data_specs.code_version import installed_version

        say(f"dnd {installed_version('dnd-transformer') or '(a checkout that is not installed)'}")
        raise typer.Exit


@app.command()
def run(
    root: RootOpt,
    spec: SpecArg = None,
    set_: SetOpt = None,
    ray_address: AddressOpt = None,
    workers: WorkersOpt = None,
    ranks: RanksOpt = None,
    from_: FromOpt = None,
) -> None:
    """Run all stages in order, from documents to the report; finished ones are recognised and passed over.

    With --from, a new root takes images, tokenizer and codes of another, as far as that has them: for another model.
    """
    from infra.demo import run_all

    resolved, root = open_root(spec, root, set_, *SECTIONS, old=from_)
    number = ranks_here(ranks, resolved.tokenizer.batch_size, resolved.train.batch_size)
    if from_ and (training := find("train")):
        take_over(training, resolved, root, from_)
    run_all(resolved, root, with_gpus(Workers(ray_address, workers)), number)


@app.command()
def demo(
    root: RootOpt = "runs/demo",
    spec: Annotated[str, typer.Argument(help="a preset or a YAML file", metavar="[SPEC]")] = "demo",
    pdfs: Annotated[str | None, typer.Option(help="folder of PDFs to use instead of typeset ones")] = None,
    text: Annotated[str | None, typer.Option(help="passages (JSON Lines) to use instead of docstrings")] = None,
    set_: SetOpt = None,
    workers: WorkersOpt = None,
) -> None:
    """Run the whole pipeline on this machine, on texts that every machine has, and say what came of it."""
    from infra.demo import demo_overrides, run_all

    resolved, root = open_root(spec, root, [*demo_overrides(spec, pdfs, text), *(set_ or [])])
    run_all(resolved, root, Workers(num_workers=workers), 1)


def main() -> None:
    """Run the command; a user's mistake ends in one line and exit code 1, never in a traceback."""
    for name, value in CHILDREN.items():
        os.environ.setdefault(name, value)
    start_log()
    try:
        app(standalone_mode=True)
    except ModuleNotFoundError as error:
        say(f"dnd: {_missing(error)}", sys.stderr)
        sys.exit(1)
    except (ValueError, OSError, UnitsFailed) as error:
        say(f"dnd: {_one_line(error)}", sys.stderr)
        sys.exit(1)


def _missing(error: ModuleNotFoundError) -> str:
    """One line that says what to install for the module that was not found; raises `error` where it is no extra's."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in MODULES.items():
        if module in modules:
            return f"{module} is not installed here: pip install 'dnd-transformer[{extra}]'"
    raise error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
    return str(error)


if __name__ == "__main__":
    main()
