"""Jobs on Kubernetes: a JobSet that trains, or a RayJob of the pods of infra/kubernetes/raycluster.yaml."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml

from infra.submit.job import Job, command, run_tool, training_arguments, variables
from infra.submit.overlay import Manifest, laid_over

MANIFESTS = Path(__file__).resolve().parents[1] / "kubernetes"
RESOURCES = {"RayJob": "rayjobs.ray.io", "JobSet": "jobsets.jobset.x-k8s.io"}
ENDED = ("Complete", "Failed", "ValidationFailed", "Completed")  # RayJob's jobDeploymentStatus, JobSet's terminalState
DELETE_SECONDS = 300


def manifest(job: Job) -> Manifest:
    """Return the object for `kubectl create`: a JobSet for trainings, else a RayJob with a cluster of its own.

    Raises:
        ValueError: there is no image that a cluster could pull.
    """
    image = image_of(job)
    job = job._replace(image=image)
    return laid_over(_jobset(job) if job.of.trains else _rayjob(job), job.overlay)


def image_of(job: Job) -> str:
    """Return --image, or that of the registry that DND_REGISTRY names."""
    variant = "cuda" if job.gpus else "cpu"
    registry = os.environ.get("DND_REGISTRY")
    if not job.image and not registry:
        raise ValueError(
            f"--on kubernetes: give --image, what `make image-{variant}` built and you pushed, best by its digest "
            "(REGISTRY/dnd-transformer@sha256:…), or set DND_REGISTRY"
        )
    return job.image or f"{registry}/dnd-transformer:{variant}"


def _name(job: Job) -> str:
    """Return the job's name, the same for the same stage and root: a second submission meets the first.

    KubeRay allows 47 characters.
    """
    run = re.sub("[^a-z0-9]+", "-", job.root.rpartition("/")[2].lower())[:14].strip("-")
    return f"dnd-{job.stage}-{run}-{hashlib.sha256(job.root.encode()).hexdigest()[:6]}"


def to_yaml(tree: Mapping[str, object]) -> str:
    """Return a tree as YAML which every reader takes as it is meant; the shared parts of the tree are written out."""
    return yaml.dump(json.loads(json.dumps(tree)), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes also the texts that are numbers or truth values in the YAML of Go's libraries, which kubectl reads by."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?0[bBoOxX][0-9a-fA-F_]+|[yYnN])$"),
    list("-+.0123456789yYnN"),
)


# ---- the other stages ------------------------------------------------------------------------------------------------
def _rayjob(job: Job) -> Manifest:
    cluster = _cluster(job)
    spec: Manifest = {
        "entrypoint": _unexpanded(shlex.join(command(job))),
        "runtimeEnvYAML": to_yaml({"env_vars": variables(job)}),
        "submissionMode": "K8sJobMode",
        "backoffLimit": 10,  # a head that is lost: again, and done units stay done
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 3600,
        "submitterPodTemplate": {"spec": _submitter(cluster["headGroupSpec"]["template"]["spec"], job)},
        "rayClusterSpec": cluster,
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": _name(job)}, "spec": spec}


def _submitter(head: Manifest, job: Job) -> Manifest:
    """Return the pod that hands the job to the head; KubeRay fills in its command."""
    requests = {"cpu": "100m", "memory": "512Mi"}
    container = {
        "name": "ray-job-submitter",
        "image": job.image,
        "resources": {"requests": requests, "limits": {"memory": "1Gi"}},
        "securityContext": head["containers"][0]["securityContext"],
    }
    return {"restartPolicy": "Never", "securityContext": head["securityContext"], "containers": [container]}


def _cluster(job: Job) -> Manifest:
    """Return the cluster's spec with the one pool that the stage needs, sized for its workers."""
    spec: Manifest = _read("raycluster.yaml")["spec"]
    (pool,) = (group for group in spec["workerGroupSpecs"] if group["groupName"] == ("gpu" if job.gpus else "cpu"))
    container = _container(pool["template"])
    head = _container(spec["headGroupSpec"]["template"])
    if job.gpus:
        _multiply(container["resources"], job.gpus)
    container["image"] = head["image"] = job.image  # the driver's torch is part of the digest: one image for all
    workers_of_pod = job.gpus or int(container["resources"]["requests"]["cpu"])
    pool["maxReplicas"] = math.ceil((job.workers or 1) / workers_of_pod)
    if not job.autoscale:
        pool["replicas"] = pool["minReplicas"] = pool["maxReplicas"]
        del spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]
    return spec | {"workerGroupSpecs": [pool]}


# ---- trainings -------------------------------------------------------------------------------------------------------
def _jobset(job: Job) -> Manifest:
    made = _read("train-jobset.yaml")
    made["metadata"]["name"] = _name(job)
    node = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    node |= {"parallelism": job.nodes, "completions": job.nodes}
    container = _container(node["template"])
    container["command"] = ["infra/launch.sh", *map(_unexpanded, training_arguments(job))]
    container["image"] = job.image
    container["env"] = [variable for variable in container["env"] if variable["name"] != "NUM_NODES"]
    for name, value in {"NUM_NODES": str(job.nodes), **variables(job)}.items():
        container["env"].append({"name": name, "value": _unexpanded(value)})
    _multiply(container["resources"], job.ranks)
    if not job.gpus:
        for amounts in container["resources"].values():
            amounts.pop("nvidia.com/gpu", None)
    return made


def _unexpanded(text: str) -> str:
    """Return a text that is itself again once Kubernetes has replaced each $(NAME) and $$ in it."""
    return text.replace("$", "$$")


def _multiply(resources: Manifest, gpus: int) -> None:
    """Multiply cores, memory and GPUs, which the files give for one GPU, by `gpus`; disks are per pod."""
    for amounts in resources.values():
        for name in ("cpu", "memory", "nvidia.com/gpu"):
            if name in amounts:
                number, unit = re.fullmatch(r"(\d+)(\D*)", str(amounts[name])).groups()  # type: ignore[union-attr]
                amounts[name] = f"{int(number) * gpus}{unit}"


def _container(template: Manifest) -> Manifest:
    (container,) = template["spec"]["containers"]
    made: Manifest = container
    return made


def _read(name: str) -> Manifest:
    """Read a manifest; parts that its anchors share become copies, so that each can be edited."""
    made: Manifest = json.loads(json.dumps(yaml.safe_load((MANIFESTS / name).read_text(encoding="utf-8"))))
    return made


# ---- sending ---------------------------------------------------------------------------------------------------------
def send(wanted: Manifest, text: str) -> str:
    """Create the object that `text` says; one of its name that has ended makes room.

    Raises:
        ValueError: one of its name has not ended; or what kubectl complains of.
    """
    name = wanted["metadata"]["name"]
    resource = RESOURCES[wanted["kind"]]
    space = [f"--namespace={wanted['metadata']['namespace']}"] if "namespace" in wanted["metadata"] else []
    found = _kubectl("get", resource, name, *space, "--ignore-not-found", "--output=json")
    if found:
        status = json.loads(found).get("status", {})
        if not {status.get("jobDeploymentStatus"), status.get("terminalState")} & set(ENDED):
            raise ValueError(
                f"{wanted['kind']} {name} has not ended: wait for it, or end it: "
                f"{shlex.join(['kubectl', 'delete', resource, name, *space])}"
            )
        _kubectl("delete", resource, name, *space, f"--timeout={DELETE_SECONDS}s")
    return _kubectl("create", "--filename=-", given=text)


def _kubectl(*words: str, given: str | None = None) -> str:
    return run_tool(["kubectl", *words], "see kubernetes.io/docs/tasks/tools", given)
