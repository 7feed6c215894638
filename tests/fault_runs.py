"""Runs `dnd render` under faults and says what became of every sample: shared by the short and the full matrix."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from command import Command, start_dnd
from ray_cluster import Cluster

from data_specs import storage
from data_specs.manifest import read_manifest
from data_specs.units import read_plan
from data_specs.verify import verify_set

TINY = Path(__file__).parent / "tiny.yaml"
SPLITS = ("images/train", "images/val")
SOURCES = (
    "[{kind: docstrings, passages: 40, min_words: 3, max_words: 6, vocabulary: 50}, {kind: typeset, documents: 6}]"
)
OVERRIDES = [
    *("--set", f"render.sources={SOURCES}", "--set", "render.documents_per_unit=2"),
    *("--set", "render.pages.dpi=150", "--set", "render.pages.max_pages=2"),
]


class Ended(NamedTuple):
    """What a disturbed run ended in: samples lost and samples there twice, against an undisturbed run."""

    lost: int
    twice: int
    identical: bool
    faults: list[str]


def start(root: str, *more: str, environment: dict[str, str] | None = None) -> Command:
    """`dnd render` on its way."""
    return start_dnd("render", TINY, "--root", root, *OVERRIDES, *more, environment=environment or os.environ)


def on(cluster: Cluster) -> list[str]:
    """The arguments that put a run on a cluster."""
    return ["--ray-address", cluster.address, "--workers", "2"]


def end(run: Command, code: int = 0) -> str:
    """Waits for a run's end and returns what it said."""
    done = run.end(600)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


def receipts(root: str) -> int:
    """Number of units done so far."""
    names = (file.uri.rpartition("/")[2] for split in SPLITS for file in storage.list_files(f"{root}/{split}"))
    return sum(name.removesuffix(".json").isdigit() for name in names)


def planned(root: str) -> int:
    """Number of units in all."""
    return sum(plan.num_units for split in SPLITS if (plan := read_plan(f"{root}/{split}")))


def at(root: str, units: int, run: Command, then: Callable[[], object]) -> None:
    """Does `then` when so many units are done, and makes sure that the run was on its way before and after."""
    deadline = time.monotonic() + 300
    while receipts(root) < units:
        assert run.poll() is None, f"the run ended before its unit {units}: {end(run)[-2000:]}"
        assert time.monotonic() < deadline, f"{units} units were not done in time"
        time.sleep(0.05)
    then()
    assert receipts(root) < planned(root), "the fault came too late to disturb anything"


def processes(cluster: Cluster, begins: str) -> list[psutil.Process]:
    """Processes of a cluster whose command line begins so: Ray's actors carry the name of their class."""
    families = (psutil.Process(node.pid).children(recursive=True) for node in cluster.nodes if node.poll() is None)
    return [member for family in families for member in family if _command(member).startswith(begins)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def compare(root: str, undisturbed: str) -> Ended:
    """Manifests byte for byte, every byte of the set against its receipts, and every key counted."""
    expected, found = _keys(undisturbed), _keys(root)
    name = "manifest.json"
    identical = all(
        storage.read_bytes(f"{root}/{split}/{name}") == storage.read_bytes(f"{undisturbed}/{split}/{name}")
        for split in SPLITS
    )
    faults = [fault for split in SPLITS for fault in verify_set(f"{root}/{split}") if "(litter" not in fault]
    return Ended(sum((expected - found).values()), sum((found - expected).values()), identical, faults)


def _keys(root: str) -> Counter[str]:
    """Keys of all samples that a root's manifests name."""
    keys: Counter[str] = Counter()
    for split in SPLITS:
        for shard in read_manifest(f"{root}/{split}/manifest.json").shardlist:
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(f"{root}/{split}/{shard.url}"))) as tar:
                keys.update(f"{split}/{name}" for name in tar.getnames() if name.endswith(".png"))
    return keys


def tell(capsys: pytest.CaptureFixture[str], fault: str, happened: str, root: str, undisturbed: str) -> None:
    """Prints the fault's line of the table in docs/faults.md, and holds what it says."""
    ended = compare(root, undisturbed)
    with capsys.disabled():
        print(f"\n| {fault} | {happened} | {ended.lost} | {ended.twice} |")
    assert ended == Ended(lost=0, twice=0, identical=True, faults=[])


def kill_the_driver(root: str, *more: str, environment: dict[str, str] | None = None) -> int:
    """Kills a run when two units are done, and runs the command again; returns the units that were done."""
    run = start(root, *more, environment=environment)
    at(root, 2, run, lambda: os.killpg(run.pid, signal.SIGKILL))
    end(run, -signal.SIGKILL)
    done = receipts(root)
    end(start(root, *more, environment=environment))
    return done
