"""Jobs on a real head with token authentication, whose environment is that of our clusters: the lock, and no `dnd`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import dnd
from ray_cluster import BIN, Cluster, locked_environment, ray_cluster

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node of its own on loopback."""
    with ray_cluster(bin=locked_environment(tmp_path_factory.mktemp("locked") / "venv")) as running:
        yield running


def test_there_is_no_dnd_on_the_nodes(cluster: Cluster) -> None:
    for words in (["python", "-c", "import ray; import infra"], ["python", "-c", "import torch, ray"]):
        command = [str(cluster.bin / words[0]), *words[1:]]
        done = subprocess.run(command, cwd="/", env=cluster.environment, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == ("infra" in words[2]), done.stderr
        assert done.returncode == 0 or "No module named 'infra'" in done.stderr
    assert not (cluster.bin / "dnd").exists()


def test_the_readmes_command_renders_on_nodes_that_hold_the_lock_only(cluster: Cluster, tmp_path: Path) -> None:
    lines = (json.dumps({"id": f"p{i}", "text": f"a b {i}"}) for i in range(40))
    (tmp_path / "passages.jsonl").write_text("\n".join(lines))
    few = f"render.sources=[{{kind: text, uri: '{tmp_path}/passages.jsonl'}}]"
    root = str(tmp_path / "root")
    options = ("--on", "ray", "--stage", "render", "--workers", "2", "--ray-address", cluster.dashboard, "--set", few)
    ours = cluster.environment | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    told = dnd("submit", "tests/tiny.yaml", "--root", root, *options, cwd=REPOSITORY, environment=ours)
    assert told.returncode == 0 and "ray job logs --follow" in told.stdout, told.stderr[-3000:]
    number = told.stdout.split()[1].rstrip(";")
    follow = [str(BIN / "ray"), "job", "logs", "--address", cluster.dashboard, "--follow", number]
    said = subprocess.run(follow, env=cluster.environment, capture_output=True, text=True, timeout=500, check=False)
    assert "succeeded" in said.stdout + said.stderr, said.stdout[-3000:] + said.stderr[-2000:]
    assert json.loads((tmp_path / "root/images/train/manifest.json").read_text())["totals"]["written"] > 10
    entries = json.loads((tmp_path / "root/code.json").read_text())["entries"]
    assert {entry["on"] or entry["began"] for entry in entries} == {"ray", "images"}
    assert entries[0]["commit"] and entries[0]["commit"] == entries[1]["commit"]  # the job says it by itself


def test_a_training_that_no_node_has_the_gpus_for_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    shape = ("--on", "ray", "--stage", "train", "--gpus", "4", "--ray-address", cluster.dashboard)
    ours = cluster.environment | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    words = ("submit", "tests/tiny.yaml", "--root", tmp_path / "root", *shape)
    told = dnd(*words, cwd=REPOSITORY, environment=ours)
    assert told.returncode == 1 and "no node has 4 GPUs (0 at most)" in told.stderr, told.stderr[-2000:]
    assert not (tmp_path / "root/code.json").exists()


def test_the_doctor_knows_the_cluster_and_its_token(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    check = f"from infra.doctor.clusters import ray_finding; print(ray_finding({cluster.dashboard!r}))"
    for token, said in ((None, "ok   ray: "), (str(tmp_path / "token"), "refuses our token: set RAY_AUTH_MODE=token")):
        environment = cluster.environment | ({"RAY_AUTH_TOKEN_PATH": token} if token else {})
        command = [sys.executable, "-c", check]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert said in done.stdout, done.stdout + done.stderr


def test_a_job_without_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    wrong = cluster._replace(environment=cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    result = wrong.submit("true", cwd=tmp_path)
    assert result.returncode != 0 and "token" in (result.stdout + result.stderr).lower()
