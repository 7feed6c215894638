"""Every manifest in infra/kubernetes is what its custom resource definition says, and fits the rest of the project."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from schemas import faults, read_manifests

from infra.submit.engines import request
from infra.submit.job import Job
from infra.submit.kubernetes import manifest

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "infra/kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
DEFINITIONS = {
    "JobSet": "jobset.x-k8s.io_jobsets.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCluster": "ray.io_rayclusters.yaml",
}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_as_their_definitions_say(shared: Path, path: Path) -> None:
    for document in read_manifests(path):
        assert list(faults(document, shared / "schemas" / DEFINITIONS[document["kind"]])) == []


def test_a_misspelt_key_and_a_wrong_value_are_found(shared: Path) -> None:
    (wrong,) = read_manifests(KUBERNETES / "train-jobset.yaml")
    job = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["terminationGracePeriod"] = 5
    job["parallelism"] = "two"
    found = "\n".join(faults(wrong, shared / "schemas/jobset.x-k8s.io_jobsets.yaml"))
    assert "terminationGracePeriod" in found and "'two' is not of type 'integer'" in found


def test_the_jobset_restarts_by_the_exit_codes_of_training() -> None:
    from train.identity import STOPPED, WRONG

    (jobset,) = read_manifests(KUBERNETES / "train-jobset.yaml")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert codes == [WRONG, STOPPED]
    actions = {
        code: rule["action"]
        for code in codes
        for rule in jobset["spec"]["failurePolicy"]["rules"]
        if f"failed with exit code {code} " in rule["onJobFailureMessagePatterns"]
    }
    assert actions == {WRONG: "FailJobSet", STOPPED: "RestartJobSetAndIgnoreMaxRestarts"}
    container = job["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["NUM_NODES"] == str(job["completions"]) == str(job["parallelism"])


STAGES = ("render", "train-tokenizer", "tokenize", "train", "sample", "decode", "reconstruct")


@pytest.mark.parametrize("stage", STAGES)
def test_submitted_jobs_are_as_their_definitions_say(shared: Path, stage: Any) -> None:
    job = Job(
        stage, "s3://bucket/run.7", workers=33, nodes=3 if stage == "train" else 1, gpus=4, image="registry/dnd:1"
    )
    made = yaml.safe_load(request(job, "kubernetes").text)
    assert list(faults(made, shared / "schemas" / DEFINITIONS[made["kind"]])) == []
    assert len(made["metadata"]["name"]) <= 47 and "dnd-transformer" not in str(made)
    assert "s3://bucket/run.7" in str(made)


@pytest.mark.parametrize(("stage", "workers"), [("render", 960), ("tokenize", 32)])
def test_the_example_is_what_submit_prints(stage: Any, workers: int) -> None:
    (example,) = read_manifests(KUBERNETES / f"rayjob-{stage}.yaml")
    assert example == yaml.safe_load(request(Job(stage, "s3://bucket/run", workers), "kubernetes").text)


def test_a_pool_is_as_large_as_its_workers() -> None:
    render = manifest(Job("render", "s3://bucket/run", 31, gpus=0))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    sample = manifest(Job("sample", "s3://bucket/run", 5, gpus=2))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [(pool["groupName"], pool["maxReplicas"]) for pool in (*render, *sample)] == [("cpu", 3), ("gpu", 5)]
    limits = sample[0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 2


def test_the_ray_cluster_is_of_the_locked_version_with_token_and_spot_pools() -> None:
    (cluster,) = read_manifests(KUBERNETES / "raycluster.yaml")
    spec = cluster["spec"]
    assert f"ray=={spec['rayVersion']}\n" in (REPOSITORY / "requirements.lock").read_text()
    assert spec["authOptions"]["mode"] == "token" and spec["enableInTreeAutoscaling"]
    for pool in spec["workerGroupSpecs"]:
        pod = pool["template"]["spec"]
        assert pool["minReplicas"] == 0 and pod["terminationGracePeriodSeconds"]
        assert {"karpenter.sh/capacity-type", "cloud.google.com/gke-spot"} <= {t["key"] for t in pod["tolerations"]}
        assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["ray", "stop"]
    assert "tolerations" not in spec["headGroupSpec"]["template"]["spec"]


def test_kubectl_reads_the_anchors_as_we_do(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
    shutil.copy(KUBERNETES / "raycluster.yaml", tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: [raycluster.yaml]\n")
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True)
    assert [yaml.safe_load(done.stdout)] == read_manifests(KUBERNETES / "raycluster.yaml")
