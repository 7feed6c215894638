"""A job as a request to its engine: what `--dry-run` prints, and what sends it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import yaml

from infra.submit import kubernetes
from infra.submit.job import DISTRIBUTED, REPOSITORY, Job, command, environment, settled, submitted, variables

Engine = Literal["local", "ray", "slurm", "kubernetes"]


class Request(NamedTuple):
    """The request in words, and the function that sends it and returns what to say about it."""

    text: str
    send: Callable[[], str]


def request(job: Job, on: Engine) -> Request:
    """The job for an engine; nothing is sent yet. Raises ValueError for what the engine cannot run."""
    job = settled(job, on)
    makers = {"local": _local, "ray": _ray, "slurm": _slurm, "kubernetes": _kubernetes}
    return makers[on](job)


# ---- this machine ----------------------------------------------------------------------------------------------------
def _local(job: Job) -> Request:
    words = command(job)

    def send() -> str:
        if code := subprocess.run(words, env=environment(), check=False).returncode:
            raise SystemExit(code)
        return f"{job.stage}: done"

    return Request(shlex.join(words) + "\n", send)


# ---- Ray -------------------------------------------------------------------------------------------------------------
def _ray(job: Job) -> Request:
    wanted = ray_request(job)

    def send() -> str:
        from ray.job_submission import JobSubmissionClient

        try:
            client = JobSubmissionClient(job.ray_address)
            number = client.submit_job(**wanted)
        except RuntimeError as error:
            raise ValueError(f"{job.ray_address or 'Ray'}: {' '.join(str(error).split())}") from None
        return f"submitted {number}; follow it with: ray job logs --follow {number}"

    return Request(_yaml(wanted), send)


def ray_request(job: Job) -> dict[str, Any]:
    """Arguments of JobSubmissionClient.submit_job: the code of this checkout travels as the working directory."""
    wanted: dict[str, Any] = {
        "entrypoint": shlex.join(command(job)),
        "runtime_env": {"env_vars": variables(job)},
        "metadata": {"stage": job.stage, "root": job.root},
    }
    if (REPOSITORY / "pyproject.toml").exists():
        wanted["runtime_env"] |= {"working_dir": str(REPOSITORY), "excludes": [".git", "/docs", "/tests"]}
    if job.stage not in DISTRIBUTED:
        wanted["entrypoint_num_gpus"] = job.gpus
    return wanted


# ---- Slurm -----------------------------------------------------------------------------------------------------------
def _slurm(job: Job) -> Request:
    words = slurm_command(job)
    return Request(shlex.join(words) + "\n", lambda: _tool(words, "apt-get install slurm-client"))


def slurm_command(job: Job) -> list[str]:
    """sbatch with the job; account, partition and time come from SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT."""
    gpus = [f"--gpus-per-node={job.gpus}"] if job.gpus else []
    if job.stage == "train":
        script = str(REPOSITORY / "infra/slurm/train.sbatch")
        spec = ["--spec", submitted(job.root, job.stage)]
        return ["sbatch", f"--nodes={job.nodes}", *gpus, script, "--root", job.root, *spec, *job.options]
    cpus = [f"--cpus-per-task={job.workers}"] if job.workers else []
    options = (f"--job-name=dnd-{job.stage}", "--requeue", "--open-mode=append", "--output=%x-%j.log", "--nodes=1")
    return ["sbatch", *options, *gpus, *cpus, f"--wrap=exec {shlex.join(command(job))}"]


# ---- Kubernetes ------------------------------------------------------------------------------------------------------
def _kubernetes(job: Job) -> Request:
    text = _yaml(kubernetes.manifest(job))
    words = ["kubectl", "create", "--filename=-"]
    return Request(text, lambda: _tool(words, "see kubernetes.io/docs/tasks/tools", text))


def _tool(words: list[str], remedy: str, given: str | None = None) -> str:
    """What a command-line tool says. Raises ValueError with its complaint."""
    if shutil.which(words[0]) is None:
        raise ValueError(f"{words[0]} is not on PATH: {remedy}")
    done = subprocess.run(words, input=given, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{words[0]}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def _yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False, width=120)  # a copy without shared parts
