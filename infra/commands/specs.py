"""`dnd presets`, `dnd spec`: what a run can be told."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from data_specs.spec import PRESETS, presets
from data_specs.text import say
from infra.commands.options import KnownRootOpt, SetOpt, SpecArg, open_spec

app = typer.Typer()


@app.command("presets")
def list_presets() -> None:
    """Names the presets, with what each is."""
    for name in presets():
        about = (PRESETS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
        say(f"{name:24} {about}")


@app.command("spec")
def print_spec(
    spec: SpecArg = None,
    root: KnownRootOpt = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of spec files")] = False,
    new: Annotated[bool, typer.Option("--new", help="print a short file to begin with")] = False,
    set_: SetOpt = None,
) -> None:
    """Print a whole spec with a comment on each key: a preset's, a file's or a root's (default: the demo's)."""
    from data_specs import explain

    if new:
        say(explain.NEW, end="")
    elif schema:
        say(json.dumps(explain.schema(), indent=1))
    else:
        say(explain.commented(open_spec(spec if spec or root else "demo", root, set_)), end="")
