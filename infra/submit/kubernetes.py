"""Manifests of jobs: a RayJob of the pods of infra/kubernetes/raycluster.yaml, or the JobSet that trains."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from infra.submit.job import DISTRIBUTED, Job, command, submitted, variables

MANIFESTS = Path(__file__).resolve().parents[1] / "kubernetes"
Manifest = dict[str, Any]


def manifest(job: Job) -> Manifest:
    """The object for `kubectl create`: a JobSet for `train`, a RayJob with a cluster of its own for other stages."""
    return _jobset(job) if job.stage == "train" else _rayjob(job)


def _name(job: Job) -> str:
    """The same for the same stage and root, so that a second submission is refused; KubeRay allows 47 characters."""
    run = re.sub("[^a-z0-9]+", "-", job.root.rpartition("/")[2].lower())[:14].strip("-")
    return f"dnd-{job.stage}-{run}-{hashlib.sha256(job.root.encode()).hexdigest()[:6]}"


def _rayjob(job: Job) -> Manifest:
    wanted: Manifest = {
        "entrypoint": shlex.join(command(job)),
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": variables(job)}),
        "submissionMode": "K8sJobMode",
        "backoffLimit": 3,  # a head that is lost: again, and done units stay done
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 3600,
        "rayClusterSpec": _cluster(job),
    }
    if job.stage not in DISTRIBUTED:
        wanted["entrypointNumGpus"] = job.gpus
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": _name(job)}, "spec": wanted}


def _cluster(job: Job) -> Manifest:
    """The cluster's spec with the one pool that the stage needs, as large as its workers."""
    spec: Manifest = _read("raycluster.yaml")["spec"]
    (pool,) = (group for group in spec["workerGroupSpecs"] if group["groupName"] == ("gpu" if job.gpus else "cpu"))
    container, head = _container(pool["template"]), _container(spec["headGroupSpec"]["template"])
    if job.gpus:
        for limits in container["resources"].values():
            limits["nvidia.com/gpu"] = job.gpus
    if job.image:
        container["image"] = job.image
    head["image"] = container["image"]  # the driver's torch is part of the digest: one image for all
    each = 1 if job.gpus else int(container["resources"]["limits"]["cpu"])
    pool["maxReplicas"] = math.ceil((job.workers or 1) / each)
    return spec | {"workerGroupSpecs": [pool]}


def _jobset(job: Job) -> Manifest:
    made = _read("train-jobset.yaml")
    made["metadata"]["name"] = _name(job)
    node = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    node |= {"parallelism": job.nodes, "completions": job.nodes}
    container = _container(node["template"])
    container["command"] = [
        "infra/launch.sh",
        "--root",
        job.root,
        "--spec",
        submitted(job.root, job.stage),
        *job.options,
    ]
    container["image"] = job.image or container["image"]
    container["resources"]["limits"]["nvidia.com/gpu"] = str(job.gpus)
    container["env"] = [variable for variable in container["env"] if variable["name"] != "NUM_NODES"]
    for name, value in {"NUM_NODES": str(job.nodes), **variables(job)}.items():
        container["env"].append({"name": name, "value": value})
    return made


def _container(template: Manifest) -> Manifest:
    (container,) = template["spec"]["containers"]
    made: Manifest = container
    return made


def _read(name: str) -> Manifest:
    """A manifest; parts that its anchors share are copies, so that each can be edited."""
    made: Manifest = json.loads(json.dumps(yaml.safe_load((MANIFESTS / name).read_text(encoding="utf-8"))))
    return made
