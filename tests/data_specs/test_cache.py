"""The local cache: one download for many processes, a bounded size, whole files only."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from data_specs import cache, storage


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filled(folder: Path) -> set[str]:
    return {path.name.partition("-")[2] for path in folder.iterdir() if not path.name.startswith("lock-")}


def put(name: str, size: int, seconds_ago: float = 0) -> Path:
    path = cache.local_copy(name, name, size, lambda path: path.write_bytes(bytes(size)) and None)
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def _fetch(folder: Path, barrier: object, log: Path) -> None:
    def fill(path: Path) -> None:
        with log.open("a") as file:
            file.write("fill\n")
        time.sleep(0.2)
        path.write_bytes(b"data")

    barrier.wait()  # type: ignore[attr-defined]
    os._exit(0 if cache.local_copy("key", "x.tar", 4, fill).read_bytes() == b"data" else 1)


def test_processes_share_one_download(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    children = [context.Process(target=_fetch, args=(folder, barrier, tmp_path / "log")) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 4
    assert (tmp_path / "log").read_text() == "fill\n"


def test_least_recently_used_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_CACHE_BYTES", "1000")
    put("old", 400, seconds_ago=500)
    put("older", 400, seconds_ago=900)
    put("older", 400, seconds_ago=400)  # used again
    put("new", 400)
    assert filled(folder) == {"older", "new"}


def test_a_file_just_handed_out_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_CACHE_BYTES", "1000")
    for name in ("a", "b", "c"):
        put(name, 400)
    assert filled(folder) == {"a", "b", "c"}


def test_an_open_file_outlives_its_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_CACHE_BYTES", "500")
    with put("open", 400, seconds_ago=500).open("rb") as file:
        put("next", 400)
        assert not Path(file.name).exists() and file.read() == bytes(400)


def test_half_a_download_is_never_handed_out(folder: Path) -> None:
    def break_off(path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cache.local_copy("key", "x", 8, break_off)
    with pytest.raises(OSError, match="got 4 bytes of 8"):
        cache.local_copy("key", "x", 8, lambda path: path.write_bytes(b"half") and None)
    assert filled(folder) == set()


def test_a_full_disk_names_the_remedy(folder: Path) -> None:
    def fill(path: Path) -> None:
        path.write_bytes(b"h")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="DND_CACHE_BYTES"):
        cache.local_copy("key", "x", 8, fill)
    assert filled(folder) == set()


def test_parts_of_dead_processes_are_removed(folder: Path) -> None:
    put("x", 1)
    for name, seconds_ago in (("0-dead.part", 4000), ("0-alive.part", 10)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - seconds_ago,) * 2)
    put("y", 1)
    assert filled(folder) == {"x", "y", "alive.part"}


def test_limits_are_checked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert cache.limit_bytes() > 0
    monkeypatch.setenv("DND_CACHE_BYTES", "10 GB")
    with pytest.raises(ValueError, match="DND_CACHE_BYTES=10 GB: give a number of bytes"):
        cache.limit_bytes()


def test_another_users_folder_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ValueError, match="belongs to another user"):
        cache.folder()


def test_a_changed_object_is_another_entry(s3_root: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3_root}/set/../x y"
    storage.write_bytes(uri, b"one")
    first = storage.local_copy(uri)
    storage.write_bytes(uri, b"two")
    assert (first.read_bytes(), storage.local_copy(uri).read_bytes()) == (b"one", b"two")
    assert first.parent == folder and first.name.endswith("-x_y")
