"""Options that sub-commands share, and how they open a spec and a root."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from data_specs import storage
from data_specs.root import NAME, read_spec
from data_specs.spec import Spec
from pipeline.workers import Workers

SpecArg = Annotated[
    str | None,
    typer.Argument(help="a preset (see `dnd presets`) or a YAML file (default: ROOT/spec.yaml)", metavar="[SPEC]"),
]
RootOpt = Annotated[
    str, typer.Option("--root", help="where everything of this run lies: a folder or s3://bucket/prefix")
]
FromOpt = Annotated[
    str | None, typer.Option("--from", metavar="OLD_ROOT", help="a new root takes what this stage reads from there")
]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", help="override by dotted key: --set train.micro_batch_size=8")
]
AddressOpt = Annotated[
    str | None, typer.Option("--ray-address", help="Ray cluster to use (default: embedded, or RAY_ADDRESS)")
]
WorkersOpt = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="number (default: one per CPU or GPU; 0: this process, without Ray)"),
]
KnownRootOpt = Annotated[
    str | None, typer.Option("--root", help="a root whose spec.yaml is taken where no SPEC is named")
]
RootArg = Annotated[
    str, typer.Argument(help="the root of a run: a folder or s3://bucket/prefix (or --root ROOT)", metavar="ROOT")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="print one JSON document instead, for programs")]
MaxFailuresOpt = Annotated[
    int, typer.Option("--max-failures", min=1, help="end the run when so many units have failed three times")
]
PartOpt = Annotated[
    str | None, typer.Option("--part", metavar="I/N", help="only these units: the I-th of N jobs that share the work")
]
RanksOpt = Annotated[
    int | None, typer.Option("--ranks", min=1, help="training processes on this machine (default: one per GPU, or one)")
]


def local_path(text: str) -> Path:
    """Return the text of an option as a path on this machine.

    Raises:
        BadParameter: the text is an address with a scheme.
    """
    if storage.is_address(text):
        raise typer.BadParameter(f"{text}: lies on this machine: give a path, not {text.partition(':')[0]}://")
    return Path(text)


class _FirstWord(TyperCommand):
    """A command whose first argument may as well stand behind an option."""

    first: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the option's value, wherever it stands, in front of the other arguments."""
        ends = args.index("--") if "--" in args else len(args)
        for index, word in enumerate(args[:ends]):
            name, equals, value = word.partition("=")
            if name == self.first and (equals or index + 1 < ends):
                rest = args[index + 1 :] if equals else args[index + 2 :]
                args = [value if equals else args[index + 1], *args[:index], *rest]
                break
        return super().parse_args(ctx, args)


class RootCommand(_FirstWord):
    """A command whose first argument is ROOT: it takes no SPEC, so that `--root ROOT` and ROOT say the same."""

    first = "--root"


class SpecCommand(_FirstWord):
    """A command whose only argument is SPEC: `--preset SPEC` says the same."""

    first = "--preset"


def open_root(
    spec: str | None, root: str, overrides: list[str] | None, *sections: str, old: str | None = None
) -> tuple[Spec, str]:
    """Read the spec of a command, by default the root's own, and make the root absolute; write nothing.

    Args:
        sections: keys of the spec without which the command cannot work.
        old: what `--from` names: the root whose spec is taken where the new one has none yet.
    """
    root = storage.absolute(root)
    if old and not spec and not storage.exists(storage.join(root, NAME)):
        spec = storage.join(storage.absolute(old), NAME)
    resolved = read_spec(spec, root, overrides or [])
    resolved.require(*sections)
    return resolved, root


def open_spec(spec: str | None, root: str | None, overrides: list[str] | None, *sections: str) -> Spec:
    """Read the spec of a command that needs no root.

    Raises:
        ValueError: neither a SPEC nor a root was named; or as `open_root`.
    """
    if spec is None and root is None:
        raise ValueError("name a SPEC, a preset (`dnd presets`) or a YAML file, or a root that has one: --root ROOT")
    resolved = read_spec(spec, storage.absolute(root) if root else None, overrides or [])
    resolved.require(*sections)
    return resolved


def with_gpus(workers: Workers) -> Workers:
    """Workers for stages that compute: one GPU each where there are GPUs.

    DND_WORKER_GPUS says so where this process runs beside the workers, on a Ray head without GPUs.
    """
    import torch

    gpus = os.environ.get("DND_WORKER_GPUS") or ("1" if torch.cuda.is_available() else "0")
    return workers._replace(gpus=float(gpus))


def ranks_here(ranks: int | None, *batches: int) -> int:
    """Return the number of ranks: as asked for, else one per GPU of this machine, as many as divide the batches."""
    import torch

    gpus = max(torch.cuda.device_count(), 1)
    return ranks or next(number for number in range(gpus, 0, -1) if not any(batch % number for batch in batches))
