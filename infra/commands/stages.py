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
    compute_workers,
    open_root,
    ranks_here,
)
from pipeline.stages import Option, Stage, UnitStage, registered
from pipeline.workers import MAX_FAILURES, Share, ShareDone, Workers, kept

Declared = dict[str, tuple[Any, Any]]  # name of a parameter -> (what typer makes of it, its default)
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
    """Adds the command of each registered stage."""
    for stage in registered():
        app.command(stage.name, help=stage.title, epilog=_named_keys(stage))(command_of(stage))


def run_stage(stage: Stage, spec: Spec, root: str, workers: Workers, **options: Any) -> float:
    """Runs a stage, prints what it says and that it is done; returns the seconds that it took."""
    began = time.monotonic()
    with kept(workers) as same:
        for line in stage.run(spec, root, same, **options):
            say(line)
    seconds = time.monotonic() - began
    say(f"{stage.name}: done in {clock(seconds)}")
    return seconds


def command_of(stage: Stage) -> Callable[..., None]:
    """The function that runs a stage from the command line, with the signature that typer reads its options from."""
    declared = FOR_ALL | (FOR_READERS if stage.reads else {}) | (FOR_TRAININGS if stage.trains else FOR_UNITS)
    declared |= {option.name.replace("-", "_"): (_annotated(option), option.default) for option in stage.options}

    def command(
        root: str,
        spec: str | None,
        set_: list[str] | None,
        from_: str | None = None,
        ranks: int | None = None,
        ray_address: str | None = None,
        workers: int | None = None,
        max_failures: int = MAX_FAILURES,
        part: str | None = None,
        **given: Any,
    ) -> None:
        keys = {option.name.replace("-", "_"): option.key for option in stage.options}
        overrides = [f"{keys[name]}={value}" for name, value in given.items() if keys[name] and value is not None]
        resolved, root = open_root(spec, root, [*(set_ or []), *overrides], *stage.sections, old=from_)
        if stage.trains:
            use = Workers(num_workers=ranks_here(ranks, getattr(resolved, stage.batch).batch_size))
        elif stage.computes:
            use = compute_workers(ray_address, workers, max_failures)
        else:
            use = Workers(ray_address, workers, max_failures=max_failures)
        if part and not isinstance(stage, UnitStage):
            raise ValueError(f"--part {part}: `{stage.name}` is not made in units that jobs could share")
        use = use._replace(share=Share.parse(part)) if part else use
        options = {name: value for name, value in given.items() if not keys[name]}
        if from_:
            take_over(stage, resolved, root, from_)
        try:
            run_stage(stage, resolved, root, use, **options)
        except ShareDone as done:
            say(f"{stage.name}: {done}")

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in declared.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {name: kind for name, (kind, _) in declared.items()}
    return command


def _named_keys(stage: Stage) -> str | None:
    """Which keys of the spec say how a stage works."""
    keys = ", ".join(key for name in stage.keys for key in keys_of(name))
    return f"By the spec's keys, which --set overrides and `dnd spec` explains: {keys}" if keys else None


def take_over(stage: Stage, spec: Spec, root: str, old: str) -> None:
    """Gives a new root what a stage reads in the old one, and says so (`--from`); raises as `inherit` does."""
    from infra.inherit import inherit

    for line in inherit(stage, spec, root, storage.absolute(old)):
        say(line)


def _annotated(option: Option) -> Any:
    kind = option.type if option.default is not None else option.type | None
    least = 1 if option.type is int else None
    return Annotated[kind, typer.Option(f"--{option.name}", help=option.help, min=least)]
