"""What all tests share: the folder of shared test data, one Ray for the session, and S3 servers on loopback."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))  # `tests` is also an installed package's name

import s3_server  # noqa: E402

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DND_WANDB", "0")  # a second of every rank; tests that want it set 1
os.environ.setdefault("WANDB_SILENT", "true")


STARTS_PROCESSES = {"dnd", "command", "ranks", "ray_cluster", "slurm_cluster", "fault_runs", "runs", "subprocess"}
SLOW_FIXTURES = {"ray_session", "ceph", "moto"}
COMPUTES = {  # files that train, render or read for seconds
    *(
        "test_depths",
        "test_recipes",
        "test_fit",
        "test_memory",
        "test_muon",
        "test_render",
        "test_hostile",
        "test_extend",
    ),
    *("test_removal", "test_rocr", "test_fid_sets", "test_owning", "test_encode", "test_quantizer"),
    *("test_ocr_engines", "test_moving", "test_metrics"),
}
SYSTEMS = {  # files whose tests run launchers, Slurm, clusters that they kill, browsers, or models until they learnt
    *("test_slurm", "test_faults", "test_runner", "test_launch", "test_ray_job", "test_training", "test_released"),
    *("test_view", "test_ways", "test_examples", "test_experiments", "test_depths", "test_recipes", "test_bench"),
    "test_gauges",
}
LONGEST = (  # files, in the order in which they begin: one that begins last leaves the other processes idle
    *("test_slurm", "test_runner", "test_training", "test_faults", "test_view", "test_launch", "test_ray_job"),
    *("test_ways", "test_cli", "test_fit", "test_experiments", "test_submit", "test_examples", "test_render"),
    *("test_hostile", "test_memory", "test_elastic", "test_fid_sets", "test_bench", "test_depths", "test_gauges"),
    *("test_ocr_engines", "test_released"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; marks whole systems, and as `slow` what starts processes or computes for long."""
    begins = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begins.get(item.path.stem, len(LONGEST)))
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        if item.path.stem in SYSTEMS:
            item.add_marker("system")
        names, fixtures = set(vars(item.module)), set(item.fixturenames)
        if names & STARTS_PROCESSES or fixtures & SLOW_FIXTURES or item.path.stem in COMPUTES:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data (DND_SHARED, default ../shared); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("DND_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"shared test data is not at {folder}; set DND_SHARED")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """An embedded Ray of two CPUs for the whole session, which `dnd` of tests/command.py joins."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # niced, workers starve beside other tests
    with pytest.MonkeyPatch.context() as patch:  # its workers find the stage of tests/infra/word_count.py
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tests/infra"), prepend=os.pathsep)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def moto() -> Iterator[s3_server.Server]:
    """An S3 server in this process that believes every signature."""
    with s3_server.moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[s3_server.Server]:
    """Debian's Ceph RADOS gateway: checks signatures and makes requesters pay. Skips where it is not installed."""
    if missing := s3_server.missing_binaries():
        pytest.skip(
            f"{', '.join(missing)} not installed: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
        )
    with s3_server.ceph_server() as server:
        yield server


@pytest.fixture
def use_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """use_s3(server, account): from here on this process is that user of that server, with a cache of its own."""

    def use(server: s3_server.Server, account: s3_server.Account | None = None) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in s3_server.aws_environment(server, account or server.owner).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))

    return use


@pytest.fixture
def s3_root(moto: s3_server.Server, use_s3: Callable[..., None]) -> str:
    """`s3://` address of an empty bucket on moto."""
    use_s3(moto)
    return new_bucket()


@pytest.fixture
def ceph_root(ceph: s3_server.Server, use_s3: Callable[..., None]) -> str:
    """`s3://` address of an empty bucket on the Ceph gateway."""
    use_s3(ceph)
    return new_bucket()


def new_bucket() -> str:
    """`s3://` address of a bucket made now."""
    from data_specs import s3_client

    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_client.client().create_bucket(Bucket=name)
    return f"s3://{name}"
