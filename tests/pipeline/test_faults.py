"""Whatever dies under a job, the same command ends in the manifest of an undisturbed run (table: docs/faults.md)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fault_runs as runs
import pytest
from ray_cluster import Cluster, ray_cluster
from slurm_cluster import wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, where only the driver's side of Ray lives, and two nodes of one CPU that do the work."""
    with ray_cluster(cpus=0) as running:
        running.add_node()
        running.add_node()
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root that was rendered in peace, without Ray."""
    root = str(tmp_path_factory.mktemp("peace"))
    runs.end(runs.start(root, "--workers", "0"))
    return root


def test_a_killed_worker(
    cluster: Cluster, undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path)
    run = runs.start(root, *runs.on(cluster), environment=cluster.environment)
    runs.at(root, 2, run, lambda: runs.processes(cluster, "ray::_Worker")[0].kill())
    runs.end(run)
    runs.tell(capsys, "SIGKILL of a worker", "Ray starts it anew; its units are given out again", root, undisturbed)


@pytest.mark.long  # in short: test_runner.py, a killed run is finished by the next
def test_a_killed_driver(
    cluster: Cluster, undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path)
    done = runs.kill_the_driver(root, *runs.on(cluster), environment=cluster.environment)
    runs.tell(capsys, "SIGKILL of the driver", f"run again: {done} units were done", root, undisturbed)


def test_a_killed_node(cluster: Cluster, undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    run = runs.start(root, *runs.on(cluster), environment=cluster.environment)
    runs.at(root, 2, run, lambda: cluster.kill_node(len(cluster.nodes) - 1))
    runs.end(run)
    runs.tell(capsys, "SIGKILL of a whole node", "the other node does its units", root, undisturbed)


@pytest.mark.long
def test_a_killed_head(undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    with ray_cluster(2, 1) as lost:
        lost.gather(2)
        run = runs.start(root, *runs.on(lost), environment=lost.environment)
        runs.at(root, 2, run, lambda: lost.kill_node(0))
        assert run.end(300).returncode != 0
    done = runs.receipts(root)
    with ray_cluster(2, 1) as another:
        another.gather(2)
        runs.end(runs.start(root, *runs.on(another), environment=another.environment))
    happened = f"the run ends; on another cluster: {done} units were done, the rest is made"
    runs.tell(capsys, "SIGKILL of the head", happened, root, undisturbed)


@pytest.mark.long
def test_a_node_that_joins(undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    with ray_cluster(cpus=0) as growing:
        growing.add_node()
        run = runs.start(root, "--ray-address", growing.address, environment=growing.environment)
        crew = partial(runs.processes, growing, "ray::_Worker")
        runs.at(root, 2, run, lambda: crew()[0].suspend())  # or the run would be over before the node is there
        done = runs.receipts(root)
        growing.add_node()
        wait_for(lambda: len(crew()) == 2, 120, "a worker on the new node")
        wait_for(lambda: runs.receipts(root) > done, 120, "a unit made by the new node, the other stands still")
        for worker in crew():
            worker.resume()
        runs.end(run)
    runs.tell(capsys, "a node that joins", "it gets a worker and units", root, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 750 kB: room for the inputs and half the units."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=750k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here: needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk(cluster: Cluster, small_disk: Path, undisturbed: str, capsys: pytest.CaptureFixture[str]) -> None:
    root, peers = str(small_disk / "run"), runs.on(cluster)
    said = runs.end(runs.start(root, *peers, environment=cluster.environment), 1)
    assert "No space left" in said and "Traceback" not in said
    done = runs.receipts(root)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    runs.end(runs.start(root, *peers, environment=cluster.environment))
    happened = f"ends in one line after {done} units; with room, the rest is made"
    runs.tell(capsys, "a full disk", happened, root, undisturbed)
