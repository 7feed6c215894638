"""Leases: one writer a folder, a killed one holds nothing for long, and one that slept is fenced off."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import wait_for

from data_specs import lease, storage
from data_specs.records import LeaseHolder

FORK = multiprocessing.get_context("fork")
HOLD = "import signal, sys; from data_specs import lease; held = lease.acquire(sys.argv[1], 'another'); signal.pause()"


def started(folder: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder])
    wait_for(lambda: lease.holder_of(folder) is not None, 60, "the lease")
    return process


def left_by(folder: str, number: int, age: float, **facts: object) -> None:
    """A lease whose holder ended without a word."""
    then = time.time() - age
    about = {"host": "elsewhere", "pid": 1, "pid_space": "pid:[1]", "command": "dnd old", "since": then, "beat": then}
    storage.write(f"{folder}/lease/{number:06d}.json", LeaseHolder.model_validate(about | facts).to_json())


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_the_second_is_refused_by_name_until_the_first_has_ended(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = str(tmp_path) if kind == "folder" else request.getfixturevalue("s3_root")
    with lease.hold(folder, "dnd train") as held:
        assert held.holder.pid == os.getpid()
        with pytest.raises(ValueError, match=rf"`dnd train` writes here since .*process {os.getpid()}\)"):
            lease.acquire(folder, "dnd other")
        held.check()
    assert lease.holder_of(folder) is None and not list(storage.list_files(folder))
    lease.acquire(folder, "dnd other").release()


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    process = started(str(tmp_path))
    with pytest.raises(ValueError, match="`another` writes here"):
        lease.acquire(str(tmp_path), "dnd train")
    process.kill()
    process.wait()
    began = time.monotonic()
    with lease.hold(str(tmp_path), "dnd train") as held:
        assert held.number == 2 and time.monotonic() - began < lease.LAPSE_SECONDS


def test_a_holder_elsewhere_is_watched_and_lapses_without_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 1.0)
    left_by(str(tmp_path / "quiet"), 7, age=0)
    began = time.monotonic()
    with lease.hold(str(tmp_path / "quiet"), "dnd train") as held:
        assert held.number == 8 and time.monotonic() - began >= 1
    with lease.hold(str(tmp_path / "beats"), "dnd train"):
        monkeypatch.setattr(lease.socket, "gethostname", lambda: "a third machine")
        with pytest.raises(ValueError, match="`dnd train` writes here"):
            lease.acquire(str(tmp_path / "beats"), "dnd other")


def test_a_lease_of_long_ago_lapses_at_once(tmp_path: Path) -> None:
    left_by(str(tmp_path), 3, age=lease.LONG_AGO + 1)
    began = time.monotonic()
    lease.acquire(str(tmp_path), "dnd train").release()
    assert time.monotonic() - began < lease.LAPSE_SECONDS


def test_one_that_slept_is_fenced_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    with lease.hold(str(tmp_path), "dnd train") as held:
        left_by(str(tmp_path), held.number + 1, age=0)
        wait_for(lambda: held.lost, 10, "the loss")
        with pytest.raises(ValueError, match="another process took over"):
            held.check()
    assert lease.holder_of(str(tmp_path)).command == "dnd old"  # type: ignore[union-attr]


def test_of_eight_that_come_at_once_one_holds(tmp_path: Path) -> None:
    process = started(str(tmp_path))
    process.kill()
    process.wait()
    all_tried = FORK.Barrier(8)

    def try_to_hold() -> None:
        try:
            lease.acquire(str(tmp_path), "dnd train")
        except ValueError:
            all_tried.wait(60)
            os._exit(1)
        all_tried.wait(60)
        os._exit(0)

    processes = [FORK.Process(target=try_to_hold) for _ in range(8)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
    assert sorted(one.exitcode or 0 for one in processes) == [0] + [1] * 7


def test_writers_of_one_command_work_side_by_side_and_keep_others_out(tmp_path: Path) -> None:
    folder = str(tmp_path)
    first = lease.acquire(folder, "dnd render", shared=True)
    second = lease.acquire(folder, "dnd render", shared=True)
    first.release()
    with pytest.raises(ValueError, match="`dnd render` writes here since"):
        lease.acquire(folder, "dnd remove")
    with pytest.raises(ValueError, match="`dnd render` writes here since"):
        lease.acquire(folder, "dnd tokenize", shared=True)
    second.check()
    second.release()
    with lease.hold(folder, "dnd remove"), pytest.raises(ValueError, match="`dnd remove` writes here since"):
        lease.acquire(folder, "dnd render", shared=True)
