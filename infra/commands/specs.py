"""`dnd presets`, `dnd spec`: what a run can be told."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from data_specs.spec import PRESETS, load_spec, presets
from data_specs.text import say
from infra.commands.options import SetOpt

app = typer.Typer()


@app.command("presets")
def list_presets() -> None:
    """Names the presets, with what each is."""
    for name in presets():
        about = (PRESETS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
        say(f"{name:24} {about}")


@app.command()
def spec(
    preset: Annotated[str, typer.Argument(help="a preset or a YAML file")] = "demo",
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of spec files")] = False,
    new: Annotated[bool, typer.Option("--new", help="print a short file to begin with")] = False,
    set_: SetOpt = None,
) -> None:
    """Prints a whole spec with a comment on each key."""
    from data_specs import explain

    if new:
        say(explain.NEW, end="")
    elif schema:
        say(json.dumps(explain.schema(), indent=1))
    else:
        say(explain.commented(load_spec(preset, set_ or [])), end="")
