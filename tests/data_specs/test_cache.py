"""The local cache: one download for many processes, a bounded size, whole files only."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from data_specs import cache, storage


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    return cache.folder()


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
    for name, seconds_ago in ((f"{0:032x}-dead+part", 4000), (f"{0:032x}-alive+part", 10)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - seconds_ago,) * 2)
    put("y", 1)
    assert filled(folder) == {"x", "y", "alive+part"}


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
    storage.write(uri, b"one")
    first = storage.local_copy(uri)
    storage.write(uri, b"two")
    assert (first.read_bytes(), storage.local_copy(uri).read_bytes()) == (b"one", b"two")
    assert first.parent == folder and first.name.endswith("-x_y")


def test_only_what_the_cache_made_is_ever_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_CACHE_BYTES", "1000")
    old = put("old", 400, seconds_ago=500)
    (folder / f"{1:032x}-link").symlink_to(folder.parent / "thesis.tar")
    strangers = [folder.parent / "thesis.tar", folder / "thesis.tar", folder.parent / old.name, folder / "b" / old.name]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(5000))
        os.utime(path, (0, 0))
    put("new", 900)
    assert not old.exists() and all(path.stat().st_size == 5000 for path in strangers)
    cache.discard(strangers[1])
    assert strangers[1].exists()


def size_of(path: Path) -> int:
    """Bytes of a file; none of one that was renamed since the folder was listed."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def test_what_is_mapped_stays_and_the_limit_is_kept_by_those_who_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight at once want 300 of 1,000 bytes, of which 400 are held: never more than two have room."""
    monkeypatch.setenv("DND_CACHE_BYTES", "1000")
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cache, "IN_USE_SECONDS", 0.0)
    with put("held", 400, seconds_ago=500).open("rb") as file:
        cache.hold(file)
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sizes, stop = list[int](), threading.Event()

    def fill(path: Path) -> None:
        sizes.append(sum(map(size_of, folder.iterdir())))
        path.write_bytes(bytes(300))

    def fetch(number: int) -> None:
        cache.local_copy(str(number), f"{number}", 300, fill, stop)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, range(8)))
        assert max(sizes) <= 1000 and "held" in filled(folder)
        with pytest.raises(OSError, match="no longer wanted"):
            pool.submit(cache.local_copy, "large", "large", 700, fill, stop_soon(stop)).result()
    held.close()
    cache.local_copy("large", "large", 700, lambda path: path.write_bytes(bytes(700)) and None, threading.Event())
    assert "large" in filled(folder) and "held" not in filled(folder)


def test_a_file_gets_its_name_while_nobody_counts(folder: Path) -> None:
    """Whoever lists the folder while a file is renamed finds neither name, and thinks that there is room."""
    written, counting = threading.Event(), threading.Event()

    def fill(path: Path) -> None:
        path.write_bytes(b"data")
        written.set()
        counting.wait(30)

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(cache.local_copy, "x", "x", 4, fill)
        assert written.wait(30)
        with cache._eviction():
            counting.set()
            time.sleep(0.1)
            assert filled(folder) == {"x+part"}
        made.result(30)
    assert filled(folder) == {"x"}


def stop_soon(stop: threading.Event) -> threading.Event:
    stop.set()
    return stop
