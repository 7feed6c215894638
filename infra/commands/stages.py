"""A command for each registered stage: `dnd render`, `tokenize`, `train` and so on, with the options it declares."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from data_specs import storage
from data_specs.explain import keys_of
from data_specs.progress import clock
from data_specs.spec import Spec
from data_specs.text import say
from infra.commands.options import (
    AddressOpt,
    FromOpt,
    MaxFailuresOpt,
    PartOpt,
    RanksOpt,
    RootOpt,
    SetOpt,
    SpecArg,
    WorkersOpt,
    open_root,
    ranks_here,
    with_gpus,
)
from pipeline.stages import Option, Stage, UnitStage, registered
from pipeline.workers import MAX_FAILURES, Share, ShareDone, Workers, kept

Declared = dict[str, tuple[object, object]]  # name of a parameter -> (what typer makes of it, its default)
FOR_ALL: Declared = {"root": (RootOpt, inspect.Parameter.empty), "spec": (SpecArg, None), "set_": (SetOpt, None)}
FOR_READERS: Declared = {"from_": (FromOpt, None)}
FOR_TRAININGS: Declared = {"ranks": (RanksOpt, None)}
FOR_UNITS: Declared = {
    "ray_address": (AddressOpt, None),
    "workers": (WorkersOpt, None),
    "max_failures": (MaxFailuresOpt, MAX_FAILURES),
    "part": (PartOpt, None),
}


def add_stages(app: typer.Typer) -> None:
    """Add the command of each registered stage."""
    for stage in registered():
        app.command(stage.name, help=stage.title, epilog=_named_keys(stage))(command_of(stage))


def run_stage(stage: Stage, spec: Spec, root: str, workers: Workers, **options: Any) -> float:
    """Run a stage, print what it says and that it is done; return the seconds that it took."""
    began = time.monotonic()
    with kept(workers) as same:
        for line in stage.run(spec, root, same, **options):
            say(line)
    seconds = time.monotonic() - began
    say(f"{stage.name}: done in {clock(seconds)}")
    return seconds


def command_of(stage: Stage) -> Callable[..., None]:
    """Return the function that runs a stage from the command line.

    Its signature is the one from which typer reads the options.
    """
    own = {option.name.replace("-", "_"): option for option in stage.options}
    declared = FOR_ALL | (FOR_READERS if stage.reads else {}) | (FOR_TRAININGS if stage.trains else FOR_UNITS)
    declared |= {name: (_annotated(option), option.default) for name, option in own.items()}

    def command(**given: Any) -> None:
        keys = {name: option.key for name, option in own.items()}
        overrides = [f"{key}={given[name]}" for name, key in keys.items() if key and given[name] is not None]
        old = given.get("from_")
        overrides = [*(given["set_"] or []), *overrides]
        spec, root = open_root(given["spec"], given["root"], overrides, *stage.sections, old=old)
        workers = _workers(stage, spec, given)
        if old:
            take_over(stage, spec, root, old)
        try:
            run_stage(stage, spec, root, workers, **{name: given[name] for name, key in keys.items() if not key})
        except ShareDone as done:
            say(f"{stage.name}: {done}")

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in declared.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {name: annotation for name, (annotation, _) in declared.items()}
    return command


def _workers(stage: Stage, spec: Spec, given: dict[str, Any]) -> Workers:
    """Return the ranks of a training; the workers of any other stage, and their share of its units."""
    if stage.trains:
        return Workers(num_workers=ranks_here(given["ranks"], getattr(spec, stage.trained_by).batch_size))
    workers = Workers(given["ray_address"], given["workers"], max_failures=given["max_failures"])
    if stage.computes:
        workers = with_gpus(workers)
    if part := given["part"]:
        if not isinstance(stage, UnitStage):
            raise ValueError(f"--part {part}: `{stage.name}` is not made in units that jobs could share")
        workers = workers._replace(share=Share.parse(part))
    return workers


def _named_keys(stage: Stage) -> str | None:
    """Which keys of the spec say how a stage works."""
    keys = ", ".join(key for name in stage.keys for key in keys_of(name))
    return f"By the spec's keys, which --set overrides and `dnd spec` explains: {keys}" if keys else None


def take_over(stage: Stage, spec: Spec, root: str, old: str) -> None:
    """Give a new root what a stage reads in the old one (`--from`), and print what was given.

    Raises:
        ValueError: as `inherit`.
    """
    from infra.inherit import inherit

    for line in inherit(stage, spec, root, storage.absolute(old)):
        say(line)


def _annotated(option: Option) -> object:
    annotation = option.type if option.default is not None else option.type | None
    least = option.least if option.type is int else None
    return Annotated[annotation, typer.Option(f"--{option.name}", help=option.help, min=least)]
