"""`dnd submit`, `doctor`, `memory`: where it runs, whether it can run there, and what it takes."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal

import typer

from data_specs import storage
from data_specs.text import say
from infra.commands.options import AddressOpt, KnownRootOpt, RootOpt, SetOpt, SpecArg, WorkersOpt, open_root, open_spec
from infra.submit.job import Engine
from pipeline.stages import registered

app = typer.Typer()
NEEDED = {
    "tokenizer": ("tokenizer",),
    "encode": ("tokenizer",),
    "train": ("transformer", "train"),
    "sample": ("transformer",),
}
STAGES = ", ".join(stage.name for stage in registered())


@app.command(context_settings={"allow_extra_args": True})
def submit(
    context: typer.Context,
    root: RootOpt,
    on: Annotated[Engine, typer.Option(help="what runs it")],
    stage: Annotated[str, typer.Option(help=f"what runs: {STAGES}")],
    spec: SpecArg = None,
    set_: SetOpt = None,
    workers: WorkersOpt = None,
    nodes: Annotated[int, typer.Option(min=1, help="machines that train together; under slurm, or share a stage")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each machine or pod; 0: none")] = 1,
    image: Annotated[
        str | None, typer.Option(help="container image, for kubernetes (default: that of DND_REGISTRY)")
    ] = None,
    patch: Annotated[str | None, typer.Option(help="YAML laid over the manifest, for kubernetes")] = None,
    autoscale: Annotated[
        bool, typer.Option("--autoscale/--no-autoscale", help="pods come and go with the work, for kubernetes")
    ] = True,
    ray_address: AddressOpt = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the job; write and send nothing")] = False,
) -> None:
    """One stage as a job on Ray, Slurm, Kubernetes or here; its spec and the code's version go into the root.

    ROOT/submitted/STAGE.yaml and ROOT/code.json are all that is needed to run it again. Submit again what was
    interrupted.
    What stands after `--` goes to the stage's own command: `-- --extend`.
    """
    from data_specs.code_version import read_history, record_code
    from infra.submit.engines import request
    from infra.submit.job import Job, checked, code_of, restored_on_error, submitted
    from infra.submit.overlay import read_overlay

    resolved, root = open_root(spec, root, set_)
    overlay = read_overlay(patch) if patch else {}
    options = tuple(context.args)
    job = Job(stage, root, workers, nodes, gpus, image, ray_address, options, overlay, autoscale)
    wanted = request(checked(job, on, resolved), on)
    code = code_of(on)
    if dry_run:
        say(wanted.text, end="")
        return
    read_history(root)
    with restored_on_error(submitted(root, stage)):
        storage.write_text(submitted(root, stage), resolved.to_yaml())
        say(wanted.send())
    record_code(root, code, submitted=stage, on=on, job=wanted.text, image=image or "")


@app.command()
def doctor(
    root: Annotated[str | None, typer.Option(help="its rights, its disk, its spec's sources")] = None,
    ray: Annotated[str | None, typer.Option(help="a Ray dashboard: http://127.0.0.1:8265")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Slurm's controller and nodes")] = False,
) -> None:
    """Whether a run can work here: one line for each thing, ok or what to do; exit code 1 where something is wrong."""
    from infra.doctor.clusters import ray_finding, slurm_finding
    from infra.doctor.machine import machine_findings
    from infra.doctor.storage import storage_findings

    root = storage.absolute(root) if root else None
    of_root = storage_findings(root) if root else ()
    of_clusters = [*([ray_finding(ray)] if ray else ()), *([slurm_finding()] if slurm else ())]
    bad = 0
    for finding in chain(machine_findings(root), of_root, of_clusters):
        bad += not finding.ok
        say(str(finding))
    raise typer.Exit(1 if bad else 0)


@app.command()
def memory(
    spec: SpecArg = None,
    root: KnownRootOpt = None,
    stage: Annotated[
        Literal["tokenizer", "encode", "train", "sample"], typer.Option(help="what is to be computed")
    ] = "train",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that train together")] = 8,
    size: Annotated[str, typer.Option("--memory", help="memory of one GPU: 80GB, 141GB, 40GiB")] = "80GB",
    set_: SetOpt = None,
) -> None:
    """Predicts a GPU's memory by part and the batch that fits; of the transformer's training also the hours."""
    from train import duration, memory

    resolved = open_spec(spec, root, set_, *NEEDED[stage])
    room = memory.parse_bytes(size)
    if stage == "tokenizer":
        lines = memory.tokenizer_table(resolved, gpus, room)
    elif stage == "encode":
        lines = memory.encoding_table(resolved, room)
    elif stage == "sample":
        lines = memory.sampling_table(resolved, room)
    else:
        lines = [*memory.table(resolved, gpus, room), *duration.table(resolved, gpus)]
    say("\n".join(lines))
