"""One stage of a run as a job: the command that any engine starts, and what it may know of where the data is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import infra.stages  # noqa: F401 (the registry is filled)
from data_specs import storage
from data_specs.code_version import MAX_PATCH_BYTES, REPOSITORY, Code, this_code
from data_specs.local_files import no_empty_folders_left
from data_specs.spec import Spec
from data_specs.text import one_line
from infra.submit.overlay import Overlay
from pipeline.stages import Stage, UnitStage, find, registered

Engine = Literal["local", "ray", "slurm", "kubernetes"]
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "DND_REQUESTER_PAYS")


class Job(NamedTuple):
    """What is to run.

    Attributes:
        workers: most workers of a stage that is not a training; one a GPU, or one a core.
        nodes: machines that train together; under Slurm also parts of another stage, each a job of an array.
        gpus: GPUs of each machine or pod, whatever the stage and the engine; rendering takes none.
        options: more words for the stage's own command.
        overlay: what is laid over a Kubernetes manifest.
        autoscale: whether pods of a Ray cluster come and go with the work; Kueue wants all of them at once.
    """

    stage: str
    root: str
    workers: int | None = None
    nodes: int = 1
    gpus: int = 1
    image: str | None = None
    ray_address: str | None = None
    options: tuple[str, ...] = ()
    overlay: Overlay = {}  # noqa: RUF012
    autoscale: bool = True

    @property
    def of(self) -> Stage:
        """The registered stage: a training has ranks over --nodes x --gpus, the others have units over --workers."""
        stage = find(self.stage)
        if stage is None:
            raise ValueError(f"--stage {self.stage}: one of {', '.join(one.name for one in registered())}")
        return stage

    @property
    def ranks(self) -> int:
        """Processes of a training on each machine."""
        return max(self.gpus, 1)


def checked(job: Job, on: Engine, spec: Spec) -> Job:
    """Return the job as its engine will take it.

    Raises:
        ValueError: that engine cannot run it, or the spec's batch does not divide among its ranks.
    """
    job = job._replace(gpus=job.gpus if job.of.computes else 0)
    if job.of.trains:
        _check_training(job, on, spec)
    elif job.nodes > 1 and on != "slurm":
        raise ValueError(f"--nodes {job.nodes}: `{job.stage}` spreads over --workers; nodes come with them")
    elif job.nodes > 1 and not isinstance(job.of, UnitStage):
        raise ValueError(f"--nodes {job.nodes}: `{job.stage}` is not made in units that machines could share")
    elif on in ("ray", "kubernetes") and not job.workers:
        raise ValueError(
            f"--on {on} --stage {job.stage}: give --workers, the number that the pool has CPUs or GPUs for when it is "
            "full; an empty pool grows by what is asked for"
        )
    if on == "kubernetes" and not storage.is_remote(job.root):
        raise ValueError(f"--root {job.root}: pods do not see this folder; give an s3:// address")
    return job


def _check_training(job: Job, on: Engine, spec: Spec) -> None:
    if job.workers is not None:
        raise ValueError(f"--workers {job.workers}: `{job.stage}` has a rank for each GPU: give --nodes and --gpus")
    if job.nodes > 1 and on in ("ray", "local"):
        raise ValueError(f"--nodes {job.nodes}: training spreads over nodes by slurm or kubernetes")
    key = job.of.trained_by
    batch = getattr(spec, key).batch_size
    if batch % (job.nodes * job.ranks):
        raise ValueError(
            f"{key}.batch_size {batch} does not divide among {job.nodes} nodes of {job.ranks} ranks: change --nodes or "
            "--gpus"
        )


def submitted(root: str, stage: str) -> str:
    """Return where a stage's job finds the spec that it was submitted with.

    The root's own record changes when it accepts.
    """
    return storage.join(root, "submitted", f"{stage}.yaml")


def command(job: Job) -> list[str]:
    """Return what runs the stage, from the root alone."""
    words = ["python", "-m", "infra.cli", job.stage, submitted(job.root, job.stage), "--root", job.root]
    if job.of.trains:
        return [*words, "--ranks", str(job.ranks), *job.options]
    return [*words, *([] if job.workers is None else ["--workers", str(job.workers)]), *job.options]


def training_arguments(job: Job) -> list[str]:
    """Return what infra/launch.sh and infra/slurm/train.sbatch are given."""
    return [job.stage, "--root", job.root, "--spec", submitted(job.root, job.stage), *job.options]


def code_of(on: Engine) -> Code:
    """Return the code that a job will run: that of this checkout; in a container the image's, which is not known here.

    Raises:
        ValueError: more is not committed than is kept.
    """
    code = Code(None, b"") if on == "kubernetes" else this_code()
    if len(code.patch) > MAX_PATCH_BYTES:
        raise ValueError(
            f"{REPOSITORY}: {len(code.patch) >> 20} MiB are not committed: commit them, or name them in .gitignore"
        )
    return code


@contextmanager
def restored_on_error(uri: str) -> Iterator[None]:
    """Put a file back as it was where the block raises."""
    before = storage.read_text(uri) if storage.exists(uri) else None
    with no_empty_folders_left(uri.rpartition("/")[0]):
        try:
            yield
        except BaseException:  # also the end of a command here that was refused
            if before is None:
                storage.delete(uri)
            else:
                storage.write_text(uri, before)
            raise


def variables(job: Job) -> dict[str, str]:
    """Return the environment of a job on other machines: where buckets are and who pays, never who we are."""
    found = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if job.image:
        found["DND_IMAGE"] = job.image
    if job.of.computes and not job.of.trains:
        found["DND_WORKER_GPUS"] = str(min(job.gpus, 1))
    return found


def environment() -> dict[str, str]:
    """Return that of commands started from here: our Python first on PATH, and the code that this process runs."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_tool(words: list[str], remedy: str, given: str | None = None) -> str:
    """Return what a command-line tool says.

    Raises:
        ValueError: it is not there, with the remedy; or it fails, with its complaint in one line.
    """
    if shutil.which(words[0]) is None:
        raise ValueError(f"{words[0]} is not on PATH: {remedy}")
    done = subprocess.run(words, input=given, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{words[0]}: {one_line(done.stderr)}")
    return done.stdout.strip()
