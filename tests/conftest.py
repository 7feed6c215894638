"""What all tests share: the folder of shared test data, and one Ray for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("WANDB_SILENT", "true")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data (DND_SHARED, default ../shared); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("DND_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"shared test data is not at {folder}; set DND_SHARED")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """An embedded Ray of two CPUs for the whole session."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
