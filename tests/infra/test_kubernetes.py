"""Every manifest in infra/kubernetes is what its custom resource definition says, and fits the rest of the project."""

from __future__ import annotations

from pathlib import Path

import pytest
from schemas import faults, read_manifests

KUBERNETES = Path(__file__).resolve().parents[2] / "infra/kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
DEFINITIONS = {
    "JobSet": "jobset.x-k8s.io_jobsets.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCluster": "ray.io_rayclusters.yaml",
}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_as_their_definitions_say(shared: Path, path: Path) -> None:
    for manifest in read_manifests(path):
        assert list(faults(manifest, shared / "schemas" / DEFINITIONS[manifest["kind"]])) == []


def test_a_misspelt_key_and_a_wrong_value_are_found(shared: Path) -> None:
    (manifest,) = read_manifests(KUBERNETES / "train-jobset.yaml")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["terminationGracePeriod"] = 5
    job["parallelism"] = "two"
    found = "\n".join(faults(manifest, shared / "schemas/jobset.x-k8s.io_jobsets.yaml"))
    assert "terminationGracePeriod" in found and "'two' is not of type 'integer'" in found


def test_the_jobset_restarts_by_the_exit_codes_of_training() -> None:
    from train.identity import STOPPED, WRONG

    (manifest,) = read_manifests(KUBERNETES / "train-jobset.yaml")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert codes == [WRONG, STOPPED]
    actions = {
        code: rule["action"]
        for code in codes
        for rule in manifest["spec"]["failurePolicy"]["rules"]
        if f"failed with exit code {code} " in rule["onJobFailureMessagePatterns"]
    }
    assert actions == {WRONG: "FailJobSet", STOPPED: "RestartJobSetAndIgnoreMaxRestarts"}
    container = job["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["NUM_NODES"] == str(job["completions"]) == str(job["parallelism"])
