"""One stage of a run as a job: the command that any engine starts, and what it may know of where the data is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from data_specs import storage

REPOSITORY = Path(__file__).resolve().parents[2]
Stage = Literal["render", "train-tokenizer", "tokenize", "train", "sample", "decode", "reconstruct"]
DISTRIBUTED = ("render", "tokenize", "sample", "decode", "reconstruct")  # units over --workers
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "DND_REQUESTER_PAYS")


class Job(NamedTuple):
    """What is to run. gpus: of each node for trainings, of each worker for the other stages; rendering takes none.

    options: more words for the stage's own command (for `train` on several nodes: train.loop's).
    """

    stage: Stage
    root: str
    workers: int | None = None
    nodes: int = 1
    gpus: int = 1
    image: str | None = None
    ray_address: str | None = None
    options: tuple[str, ...] = ()


def settled(job: Job, on: str) -> Job:
    """The job as its engine will take it. Raises ValueError for what that engine cannot run."""
    job = job._replace(gpus=0 if job.stage == "render" else job.gpus)
    if job.nodes > 1 and (job.stage != "train" or on in ("ray", "local")):
        raise ValueError(f"--nodes {job.nodes}: only `train` spreads over nodes, and by slurm or kubernetes")
    if on == "kubernetes" and not storage.is_remote(job.root):
        raise ValueError(f"--root {job.root}: pods do not see this folder; give an s3:// address")
    if on in ("ray", "kubernetes") and job.stage in DISTRIBUTED and not job.workers:
        raise ValueError(
            f"--on {on} --stage {job.stage}: give --workers, the number that the pool has CPUs or GPUs for when it is "
            "full; an empty pool grows by what is asked for"
        )
    return job


def submitted(root: str, stage: str) -> str:
    """Where a stage's job finds the spec that it was submitted with; the root's own record changes when it accepts."""
    return storage.join(root, "submitted", f"{stage}.yaml")


def command(job: Job) -> list[str]:
    """What runs the stage, from the root alone."""
    words = ["python", "-m", "infra.cli", job.stage, submitted(job.root, job.stage), "--root", job.root]
    if job.stage not in DISTRIBUTED:
        return [*words, "--ranks", str(max(job.gpus, 1)), *job.options]
    return [*words, *(["--workers", str(job.workers)] if job.workers else []), *job.options]


def variables(job: Job) -> dict[str, str]:
    """Environment of a job on other machines: where buckets are and who pays, never who we are."""
    found = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    gpus = {"DND_WORKER_GPUS": str(job.gpus)} if job.stage in DISTRIBUTED and job.stage != "render" else {}
    return found | gpus


def environment() -> dict[str, str]:
    """Of commands started from here: our Python first on PATH, and the code that this process runs."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
