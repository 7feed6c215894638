"""Storage: one contract for a local folder and an S3 bucket."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_specs import storage


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else str(request.getfixturevalue("s3_root"))


def test_write_read_replace_delete(root: str) -> None:
    uri = storage.join(root, "a", "b.txt")
    assert storage.stat(uri) is None
    storage.write_text(uri, "one\ntwo\r\nzwölf")
    assert storage.read_text(uri) == "one\ntwo\r\nzwölf"
    assert list(storage.read_lines(uri)) == ["one", "two\r", "zwölf"]
    first = storage.stat(uri)
    storage.write_bytes(uri, b"other")
    second = storage.stat(uri)
    assert first and second and (first.size, second.size) == (15, 5) and first.etag != second.etag
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_ranges(root: str) -> None:
    uri, data = storage.join(root, "data"), bytes(range(256)) * 20
    storage.write_bytes(uri, data)
    for start, length in [(0, 10), (100, 200), (5000, None), (5110, 100), (6000, 5), (7, 0), (None, None)]:
        end = len(data) if length is None else (start or 0) + length
        assert storage.read_bytes(uri, start, length) == data[start or 0 : end], (start, length)


def test_absent_files(root: str) -> None:
    uri = storage.join(root, "none")
    for read in (storage.read_bytes, storage.open_stream, storage.local_copy):
        with pytest.raises(FileNotFoundError, match="none"):
            read(uri)
    assert list(storage.list_files(storage.join(root, "nowhere"))) == []


def test_create_never_overwrites(root: str, tmp_path: Path) -> None:
    uri, file = storage.join(root, "set", "x"), tmp_path / "file"
    file.write_bytes(b"from a file")
    assert storage.create_if_absent(uri, b"first")
    assert not storage.create_if_absent(uri, b"second")
    assert not storage.create_from_file(file, uri)
    assert storage.read_bytes(uri) == b"first"
    assert storage.create_from_file(file, storage.join(root, "set", "y"))
    assert storage.read_bytes(storage.join(root, "set", "y")) == b"from a file"


def test_one_of_many_creators_wins(root: str) -> None:
    uri = storage.join(root, "race")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create_if_absent(uri, b"%d" % i), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == b"%d" % won.index(True)


def test_listing_is_in_order_of_whole_names(root: str) -> None:
    names = ["a.txt", "a/b", "a/c/d", "a0", "b", "ä", "with space+%41"]
    for name in names:
        storage.write_bytes(storage.join(root, "set", name), name.encode())
    storage.write_bytes(storage.join(root, "set2"), b"not in the folder")
    found = list(storage.list_files(storage.join(root, "set")))
    prefix = storage.join(root, "set/")
    assert [f.uri.removeprefix(prefix) for f in found] == sorted(names)
    assert [f.size for f in found] == [len(name.encode()) for name in sorted(names)]
    assert found[0] == storage.stat(found[0].uri)
    assert [f.uri for f in storage.list_files(storage.join(root, "set2"))] == [storage.join(root, "set2")]


def test_many_reads_keep_their_order(root: str) -> None:
    uris = [storage.join(root, f"{i:03d}") for i in range(100)]
    for uri in uris[::2]:
        storage.write_bytes(uri, uri.encode())
    assert list(storage.read_many(uris)) == [uri.encode() if i % 2 == 0 else None for i, uri in enumerate(uris)]


def test_folders_come_and_go_whole(root: str) -> None:
    with storage.writable_folder(storage.join(root, "model")) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_bytes(b"w")
        assert not storage.exists(storage.join(root, "model", "part", "weights"))
        assert list(storage.list_files(storage.join(root, "model"))) == []
    assert [file.uri.rpartition("/")[2] for file in storage.list_files(storage.join(root, "model"))] == ["weights"]
    assert (storage.local_folder(storage.join(root, "model")) / "part" / "weights").read_bytes() == b"w"


def test_names_that_leave_their_folder_are_refused(s3_root: str) -> None:
    storage.write_bytes(f"{s3_root}/set/../../evil", b"")
    with pytest.raises(ValueError, match="leaves its folder"):
        storage.local_folder(f"{s3_root}/set")


def test_no_half_file_where_the_disk_is_full(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: writes beyond it fail with an error, for root too."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(100_000))
    code = f"""
import resource, signal
from pathlib import Path
from data_specs import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
for write in (storage.write_file, storage.create_from_file):
    try:
        write(Path({str(source)!r}), {str(target / "x")!r})
    except OSError as error:
        print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["27", "27"]  # EFBIG
    assert list(target.iterdir()) == []


def test_unwritable_target_is_an_error(tmp_path: Path) -> None:
    """A file where the folder should be: unwritable for root too."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"data")


def _create(uri: str, barrier: object, value: bytes) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    os._exit(0 if storage.create_if_absent(uri, value) else 1)


def test_one_of_many_processes_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_ in range(5):
        uri, barrier = str(tmp_path / f"race{round_}"), context.Barrier(4)
        children = [context.Process(target=_create, args=(uri, barrier, b"%d" % i)) for i in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        winner = [child.exitcode for child in children].index(0)
        assert [child.exitcode for child in children].count(0) == 1
        assert storage.read_bytes(uri) == b"%d" % winner
