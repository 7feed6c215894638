"""The table of docs/faults.md with the root on a real S3 server behind a network that fails."""

from __future__ import annotations

import os

import fault_runs as runs
import pytest
from s3_server import FAULTS, FaultProxy

pytestmark = pytest.mark.s3
HERE = ["--workers", "2"]  # an embedded Ray: its workers see the environment of the command


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root in a folder that was rendered in peace."""
    root = str(tmp_path_factory.mktemp("peace"))
    runs.end(runs.start(root, "--workers", "0"))
    return root


@pytest.fixture
def root(ceph_root: str) -> str:
    """An empty root on the Ceph gateway."""
    return f"{ceph_root}/run"


def rendered_through(kinds: tuple[str, ...], share: float, root: str) -> FaultProxy:
    """Renders a root through a network that spoils a share of requests; returns what it did."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], share, seed=7, kinds=kinds) as proxy:
        runs.end(runs.start(root, *HERE, environment=os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint}))
    return proxy


def test_a_network_with_every_fault(root: str, undisturbed: str, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = rendered_through(FAULTS, 0.15, root)
    assert set(proxy.made) == set(FAULTS)
    made, of = sum(proxy.made.values()), sum(proxy.requests.values())
    runs.tell(capsys, "S3: all of these", f"{made} of {of} requests spoiled, each tried again", root, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("kind", FAULTS)
def test_a_network_with_one_fault(kind: str, root: str, undisturbed: str, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = rendered_through((kind,), 0.2, root)
    made, of = proxy.made[kind], sum(proxy.requests.values())
    assert made > 10
    runs.tell(capsys, f"S3: {kind}", f"{made} of {of} requests, each tried again", root, undisturbed)


def test_two_jobs_on_one_root(root: str, undisturbed: str, capsys: pytest.CaptureFixture[str]) -> None:
    for run in [runs.start(root, *HERE) for _ in range(2)]:
        runs.end(run)
    runs.tell(capsys, "two jobs on one root", "who is second adopts the other's receipts", root, undisturbed)


@pytest.mark.long
def test_a_killed_driver(root: str, undisturbed: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = runs.kill_the_driver(root, *HERE)
    runs.tell(capsys, "SIGKILL of the driver, S3", f"run again: {done} units were done", root, undisturbed)
