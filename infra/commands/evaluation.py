"""`dnd evaluate`, `report`: what the pictures are worth."""

from __future__ import annotations

import typer

from data_specs import storage
from infra.commands.options import RootOpt, SetOpt, SpecArg, open_root

app = typer.Typer()


@app.command()
def evaluate(spec: SpecArg, root: RootOpt, set_: SetOpt = None) -> None:
    """Scores reconstructions and samples (ROOT/evaluation/summary.json)."""
    from train.evaluation.summary import summarise

    resolved, root = open_root(spec, root, set_)
    print(f"evaluation: {summarise(resolved, root)}")


@app.command()
def report(root: RootOpt) -> None:
    """Writes one self-contained page about everything under the root (ROOT/report/index.html)."""
    from infra.report.report import write_report

    print(f"report: {write_report(storage.absolute(root))}")
