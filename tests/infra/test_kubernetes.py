"""Every manifest in infra/kubernetes is what its custom resource definition says, and fits the rest of the project."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_server import KubeServer, kube_server
from schemas import faults, read_manifests

from infra.submit.engines import request
from infra.submit.job import Job, command, run_tool, training_arguments
from infra.submit.kubernetes import manifest
from infra.submit.overlay import merged, pod_specs, read_overlay

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "infra/kubernetes"
OVERLAY = KUBERNETES / "overlay.example.yaml"
MANIFESTS = sorted(path for path in KUBERNETES.glob("*.yaml") if path != OVERLAY)
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
    from tokenize_jobs.stopping import STOPPED, WRONG

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
TRAININGS = ("train", "train-tokenizer")


def job_of(stage: Any, **changes: Any) -> Job:
    """A job with the shape that its stage takes."""
    shape: dict[str, Any] = {"nodes": 3, "gpus": 4} if stage in TRAININGS else {"workers": 33, "gpus": 4}
    shape["gpus"] = 0 if stage == "render" else 4
    return Job(stage, "s3://bucket/run.7", image="registry/dnd:1", **(shape | changes))


def containers(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for pod in pod_specs(made):
        yield from pod["containers"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("autoscale", [True, False])
def test_submitted_jobs_are_as_their_definitions_say(shared: Path, stage: Any, autoscale: bool) -> None:
    made = yaml.safe_load(request(job_of(stage, autoscale=autoscale), "kubernetes").text)
    assert made["kind"] == ("JobSet" if stage in TRAININGS else "RayJob")
    assert list(faults(made, shared / "schemas" / DEFINITIONS[made["kind"]])) == []
    assert len(made["metadata"]["name"]) <= 47 and {c["image"] for c in containers(made)} == {"registry/dnd:1"}
    assert "s3://bucket/run.7" in str(made)


@pytest.mark.parametrize("stage", STAGES)
def test_a_restricted_namespace_admits_every_pod(stage: Any) -> None:
    made = manifest(job_of(stage))
    for pod in pod_specs(made):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
    rights = [container["securityContext"] for container in containers(made)]
    if stage not in TRAININGS:
        rights.append(made["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"])
    assert len(rights) == (1 if stage in TRAININGS else 4)
    assert all(r == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}} for r in rights)


def test_cores_memory_and_gpus_are_those_of_one_gpu_times_the_gpus() -> None:
    for stage, cores, memory in (("train", 32, 256), ("train-tokenizer", 32, 256), ("tokenize", 28, 112)):
        (container,) = (c for c in containers(manifest(job_of(stage))) if "nvidia.com/gpu" in str(c["resources"]))
        wanted = {"cpu": str(cores), "memory": f"{memory}Gi", "nvidia.com/gpu": "4"}
        asked = container["resources"]["requests"]
        assert {name: asked[name] for name in wanted} == wanted and asked["ephemeral-storage"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "nvidia" not in str([c["resources"] for c in containers(manifest(job_of("train", gpus=0)))])


@pytest.mark.parametrize(("stage", "workers", "kind"), [("render", 960, "cpu"), ("tokenize", 32, "cuda")])
def test_the_example_is_what_submit_prints(stage: Any, workers: int, kind: str) -> None:
    (example,) = read_manifests(KUBERNETES / f"rayjob-{stage}.yaml")
    job = Job(
        stage, "s3://bucket/run", workers, gpus=int(kind == "cuda"), image=f"registry.example/dnd-transformer:{kind}"
    )
    assert example == yaml.safe_load(request(job, "kubernetes").text)


def test_a_pool_is_as_large_as_its_workers() -> None:
    jobs = (Job("render", "s3://b/r", 31, gpus=0, image="i"), Job("sample", "s3://b/r", 5, gpus=2, image="i"))
    pools = [manifest(job)["spec"]["rayClusterSpec"]["workerGroupSpecs"] for job in jobs]
    assert [(pool["groupName"], pool["maxReplicas"], pool["replicas"]) for (pool,) in pools] == [
        ("cpu", 3, 0),
        ("gpu", 3, 0),
    ]
    fixed = manifest(jobs[1]._replace(autoscale=False))["spec"]["rayClusterSpec"]
    (pool,) = fixed["workerGroupSpecs"]
    assert "enableInTreeAutoscaling" not in fixed  # Kueue's webhook refuses it
    assert (pool["minReplicas"], pool["replicas"], pool["maxReplicas"]) == (3, 3, 3)


def test_an_image_is_named_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DND_REGISTRY", raising=False)
    with pytest.raises(ValueError, match="give --image, what `make image-cpu` built"):
        manifest(Job("render", "s3://bucket/run", 4, gpus=0))
    monkeypatch.setenv("DND_REGISTRY", "registry.example/team")
    (container,) = containers(manifest(Job("train", "s3://bucket/run", gpus=8)))
    assert container["image"] == "registry.example/team/dnd-transformer:cuda"
    assert {"name": "DND_IMAGE", "value": container["image"]} in container["env"]


def test_the_overlay_is_laid_over_every_job(shared: Path) -> None:
    overlay = read_overlay(str(OVERLAY))
    made = manifest(job_of("train", overlay=overlay))
    assert list(faults(made, shared / "schemas" / DEFINITIONS["JobSet"])) == []
    (pod,) = pod_specs(made)
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "256Gi", "nvidia.com/gpu": "4", "vpc.amazonaws.com/efa": "32"}
    (cache,) = (volume for volume in pod["volumes"] if volume["name"] == "cache")
    assert "emptyDir" not in cache and cache["ephemeral"]
    common = {key: overlay[key] for key in ("metadata", "pod", "container")}
    for stage in STAGES:
        made = manifest(job_of(stage, overlay=common))
        assert list(faults(made, shared / "schemas" / DEFINITIONS[made["kind"]])) == []
        assert made["metadata"]["namespace"] == "vision" and made["metadata"]["labels"]
        for pod in pod_specs(made):
            assert {"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"} in pod["tolerations"]
            assert pod["priorityClassName"] and {"secretRef": {"name": "our-keys"}} in pod["containers"][0]["envFrom"]


def test_lists_grow_and_members_with_a_name_are_merged() -> None:
    below = {"a": [{"name": "x", "one": 1}, {"key": "k"}], "b": {"c": 1, "d": 2}}
    above = {"a": [{"name": "x", "two": 2}, {"key": "k"}], "b": {"c": None, "e": {"f": None}}}
    whole = {"a": [{"name": "x", "one": 1, "two": 2}, {"key": "k"}, {"key": "k"}], "b": {"d": 2, "e": {}}}
    assert merged(below, above) == whole


@pytest.mark.parametrize("text", ["spec: [1]\n", "pods: {}\n", "- a\n", "{", ""])
def test_an_overlay_that_cannot_be_laid_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "overlay.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"--patch .*overlay\.yaml: "):
        read_overlay(str(tmp_path / "overlay.yaml"))


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    """An API server that kubectl reaches from here."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: apt-get install kubernetes-client")
    with kube_server(tmp_path) as (server, config):
        monkeypatch.setenv("KUBECONFIG", config)
        yield server


@pytest.mark.parametrize("stage", ["render", "train"])
def test_a_second_submission_waits_for_the_first_to_end(kube: KubeServer, stage: Any) -> None:
    wanted = request(job_of(stage, overlay={"metadata": {"namespace": "vision"}}), "kubernetes")
    assert wanted.send().endswith(" created")
    first = kube.one()
    assert first["metadata"]["namespace"] == "vision" and first["spec"]
    with pytest.raises(ValueError, match=rf"{first['metadata']['name']} has not ended: .*kubectl delete .*vision"):
        wanted.send()
    assert kube.one() is first
    first["status"] = {"jobDeploymentStatus": "Failed"} if stage == "render" else {"terminalState": "Completed"}
    assert wanted.send().endswith(" created")
    assert kube.one() is not first and "status" not in kube.one()


ODD = [
    "$(HOSTNAME)",
    "$$(NUM_NODES)",
    "a'b\"c",
    "x\ny",
    "; `id`",
    "1e3",
    "0o17",
    "y",
    "yes",
    ": ",
    "- a",
    "é\u2028",
    "",
]


def _replaced(text: str) -> str:
    """What Kubernetes makes of a command's word or a variable's value, by k8s.io/kubernetes/third_party/forked."""
    known = {"HOSTNAME": "pod", "NUM_NODES": "3"}
    return re.sub(r"\$(\$|\((\w+)\))", lambda m: "$" if m[1] == "$" else known.get(m[2], m[0]), text)


@pytest.mark.parametrize("stage", ["render", "train"])
def test_words_arrive_as_they_were_given(kube: KubeServer, stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by kubectl, replaced as Kubernetes does and, where the job is a shell's, read by bash."""
    monkeypatch.setenv("AWS_REGION", "1e3")
    job = job_of(stage, options=tuple(ODD))._replace(root="s3://bucket/$(HOSTNAME)/a b")
    request(job, "kubernetes").send()
    spec = kube.one()["spec"]
    if stage == "train":
        container = next(containers(spec))
        words = [_replaced(word) for word in container["command"]][1:]
        assert words == training_arguments(job)
        assert {"name": "AWS_REGION", "value": "1e3"} in container["env"]
        return
    print_words = "import json, sys; print(json.dumps(sys.argv[1:]))"
    entry = _replaced(spec["entrypoint"]).removeprefix("python ")
    line = shlex.join([sys.executable, "-c", print_words]) + f" {entry}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == command(job)[1:]
    assert "AWS_REGION: '1e3'" in spec["runtimeEnvYAML"]


def test_what_kubectl_complains_of_is_one_line(kube: KubeServer) -> None:
    with pytest.raises(ValueError, match=r"^kubectl: .*no matches for kind") as refused:
        run_tool(
            ["kubectl", "create", "--filename=-"],
            "",
            json.dumps({"apiVersion": "x/v1", "kind": "Y", "metadata": {"name": "z"}}),
        )
    assert "\n" not in str(refused.value)


def test_the_ray_cluster_is_of_the_locked_version_with_token_and_spot_pools() -> None:
    (cluster,) = read_manifests(KUBERNETES / "raycluster.yaml")
    spec = cluster["spec"]
    assert f"ray=={spec['rayVersion']} " in (REPOSITORY / "requirements.lock").read_text()
    assert spec["authOptions"]["mode"] == "token" and spec["enableInTreeAutoscaling"]
    for pool in spec["workerGroupSpecs"]:
        pod = pool["template"]["spec"]
        assert pool["minReplicas"] == 0 and pod["terminationGracePeriodSeconds"]
        assert {"karpenter.sh/capacity-type", "cloud.google.com/gke-spot"} <= {t["key"] for t in pod["tolerations"]}
        assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["ray", "stop"]
        assert pool["rayStartParams"]["object-store-memory"] and pod["containers"][0]["envFrom"]
    assert "tolerations" not in spec["headGroupSpec"]["template"]["spec"]


def test_head_and_training_stay_where_they_are_and_both_files_tolerate_the_same() -> None:
    (cluster,), (jobset,) = (read_manifests(KUBERNETES / f"{name}.yaml") for name in ("raycluster", "train-jobset"))
    head = cluster["spec"]["headGroupSpec"]["template"]
    training = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    for template in (head, training):
        assert template["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }
    (gpus,) = (pool for pool in cluster["spec"]["workerGroupSpecs"] if pool["groupName"] == "gpu")
    assert training["spec"]["tolerations"] == gpus["template"]["spec"]["tolerations"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] >= 10


def test_kubectl_reads_the_anchors_as_we_do(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
    shutil.copy(KUBERNETES / "raycluster.yaml", tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: [raycluster.yaml]\n")
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True)
    assert [yaml.safe_load(done.stdout)] == read_manifests(KUBERNETES / "raycluster.yaml")
