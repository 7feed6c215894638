"""Scratch folders: gone with the block, and those of a killed process gone with the next one made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data_specs.scratch import scratch_folder

HOLD = """
import time
from data_specs.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "half").write_bytes(b"half a shard")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"dnd-scratch-{os.getuid()}"


def test_a_killed_owners_folder_goes_and_a_living_ones_stays(home: Path) -> None:
    owners = [subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, living = (Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout)
        owners[0].kill()
        owners[0].wait()
        assert {killed, living} <= set(home.iterdir())
        with scratch_folder() as ours:
            assert {path for path in home.iterdir() if path.is_dir()} == {ours, living}
        assert (living / "half").read_bytes() == b"half a shard"
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()


def test_nothing_is_left_after_the_block(home: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch_folder() as folder:
        (folder / "file").touch()
        raise ZeroDivisionError
    assert [path.name for path in home.iterdir() if path.name != "making"] == []


def test_another_users_folder_is_refused(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    home.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: int(home.name.rpartition("-")[2]) + 1)
    home.rename(home.with_name(f"dnd-scratch-{os.getuid()}"))
    with pytest.raises(ValueError, match="belongs to another user"), scratch_folder():
        pass
