"""A job as a request to its engine: what `--dry-run` prints, and what sends it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from data_specs.code_version import REPOSITORY, patch_name, this_code
from data_specs.text import one_line
from infra.submit import kubernetes
from infra.submit.job import Engine, Job, command, environment, run_tool, training_arguments, variables


class Request(NamedTuple):
    """The request in words, and the function that sends it and returns what to say about it."""

    text: str
    send: Callable[[], str]


def request(job: Job, on: Engine) -> Request:
    """Return the request for a job that `job.checked` has passed; nothing is sent yet."""
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
    arguments = ray_arguments(job)

    def send() -> str:
        from ray.job_submission import JobSubmissionClient

        try:
            client = JobSubmissionClient(job.ray_address)
            if job.gpus > 1 and "entrypoint_num_gpus" in arguments:
                _refuse_unplaceable(job)
            number = client.submit_job(**arguments)
        except RuntimeError as error:
            raise ValueError(f"{job.ray_address or 'Ray'}: {one_line(error)}") from None
        return f"submitted {number}; follow it with: ray job logs --follow {number}"

    return Request(kubernetes.to_yaml(arguments), send)


def _refuse_unplaceable(job: Job) -> None:
    """Refuse a training whose GPUs no node has: on small machines it would wait for ever.

    Raises:
        ValueError: no node has that many GPUs.
    """
    from ray.util.state import list_nodes

    nodes = list_nodes(address=job.ray_address, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False)
    most = max((int((node.resources_total or {}).get("GPU", 0)) for node in nodes), default=0)
    if most < job.gpus:
        remedy = "start one first, or train by slurm, kubernetes or infra/skypilot"
        raise ValueError(f"{job.ray_address or 'Ray'}: no node has {job.gpus} GPUs ({most} at most): {remedy}")


def ray_arguments(job: Job) -> dict[str, Any]:
    """Return those of JobSubmissionClient.submit_job: the code of this checkout travels as the working directory."""
    arguments: dict[str, Any] = {
        "entrypoint": shlex.join(command(job)),
        "runtime_env": {"env_vars": variables(job) | _code_variables()},
        "metadata": {"stage": job.stage, "root": job.root},
    }
    if (REPOSITORY / "pyproject.toml").exists():
        arguments["runtime_env"] |= {"working_dir": str(REPOSITORY), "excludes": [".git", "/docs", "/tests"]}
    if job.of.trains:
        arguments |= {"entrypoint_num_gpus": job.gpus, "entrypoint_num_cpus": job.ranks}
    return arguments


def _code_variables() -> dict[str, str]:
    """Return the environment variables that name the code's commit and patch.

    The job cannot see them itself: a working directory travels without its history.
    """
    code = this_code()
    known = {"DND_COMMIT": code.commit, "DND_PATCH": patch_name(code)}
    return {name: value for name, value in known.items() if value}


# ---- Slurm -----------------------------------------------------------------------------------------------------------
def _slurm(job: Job) -> Request:
    words = slurm_command(job)
    return Request(shlex.join(words) + "\n", lambda: run_tool(words, "apt-get install slurm-client"))


def slurm_command(job: Job) -> list[str]:
    """Return sbatch with the job, on whole nodes: a training over all of them, or an array of one-node parts.

    Account, partition and time come from SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT.
    """
    options = [f"--job-name=dnd-{job.stage}", *([f"--gpus-per-node={job.gpus}"] if job.gpus else [])]
    if job.of.trains:
        script = str(REPOSITORY / "infra/slurm/train.sbatch")
        return ["sbatch", f"--nodes={job.nodes}", *options, script, *training_arguments(job)]
    options += ["--requeue", "--open-mode=append", "--exclusive", "--mem=0", "--nodes=1", "--ntasks=1"]
    words = shlex.join(command(job))
    if job.nodes == 1:
        return ["sbatch", *options, "--output=%x-%j.log", f"--wrap=exec {words}"]
    array = [f"--array=1-{job.nodes}", "--output=%x-%A_%a.log"]
    return ["sbatch", *options, *array, f"--wrap=exec {words} --part $SLURM_ARRAY_TASK_ID/{job.nodes}"]


# ---- Kubernetes ------------------------------------------------------------------------------------------------------
def _kubernetes(job: Job) -> Request:
    wanted = kubernetes.manifest(job)
    text = kubernetes.to_yaml(wanted)
    return Request(text, lambda: kubernetes.send(wanted, text))
