"""`ray job submit` against a real head node with token authentication, as the README says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import Cluster, ray_cluster

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node of its own on loopback."""
    with ray_cluster() as running:
        yield running


def test_a_submitted_job_renders(cluster: Cluster, tmp_path: Path) -> None:
    result = cluster.submit("dnd", "render", "tests/tiny.yaml", "--root", str(tmp_path / "root"), cwd=REPOSITORY)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    manifest = json.loads((tmp_path / "root/images/train/manifest.json").read_text())
    assert manifest["totals"]["written"] > 50
    assert "succeeded" in result.stdout + result.stderr


def test_a_job_without_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    wrong = cluster._replace(environment=cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    result = wrong.submit("true", cwd=tmp_path)
    assert result.returncode != 0 and "token" in (result.stdout + result.stderr).lower()
