"""Storage: one contract for a local folder and an S3 bucket."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
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
    assert list(storage.open_stream(uri)) == [b"one\n", b"two\r\n", "zwölf".encode()]
    first = storage.stat(uri)
    storage.write(uri, b"other")
    second = storage.stat(uri)
    assert first and second and (first.size, second.size) == (15, 5) and first.etag != second.etag
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_ranges(root: str) -> None:
    uri, data = storage.join(root, "data"), bytes(range(256)) * 20
    storage.write(uri, data)
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
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert not storage.create(uri, file)
    assert storage.read_bytes(uri) == b"first"
    assert storage.create(storage.join(root, "set", "y"), file)
    assert storage.read_bytes(storage.join(root, "set", "y")) == b"from a file"


def test_one_of_many_creators_wins(root: str) -> None:
    uri = storage.join(root, "race")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create(uri, b"%d" % i), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == b"%d" % won.index(True)


def test_listing_is_in_order_of_whole_names(root: str) -> None:
    names = ["a.txt", "a/b", "a/c/d", "a0", "b", "ä", "with space+%41"]
    for name in names:
        storage.write(storage.join(root, "set", name), name.encode())
    storage.write(storage.join(root, "set2"), b"not in the folder")
    found = list(storage.list_files(storage.join(root, "set")))
    prefix = storage.join(root, "set/")
    assert [f.uri.removeprefix(prefix) for f in found] == sorted(names)
    assert [f.size for f in found] == [len(name.encode()) for name in sorted(names)]
    assert found[0] == storage.stat(found[0].uri)
    assert [f.uri for f in storage.list_files(storage.join(root, "set2"))] == [storage.join(root, "set2")]


def test_many_reads_keep_their_order(root: str) -> None:
    names = [f"{i:03d}" for i in range(100)]
    for name in names[::2]:
        storage.write(storage.join(root, name), name.encode())
    expected = [name.encode() if i % 2 == 0 else None for i, name in enumerate(names)]
    assert list(storage.read_many(root, names)) == expected


def test_folders_come_and_go_whole(root: str) -> None:
    with storage.writable_folder(storage.join(root, "model")) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_bytes(b"w")
        assert not storage.exists(storage.join(root, "model", "part", "weights"))
        assert list(storage.list_files(storage.join(root, "model"))) == []
    assert [file.uri.rpartition("/")[2] for file in storage.list_files(storage.join(root, "model"))] == ["weights"]
    assert (storage.local_folder(storage.join(root, "model")) / "part" / "weights").read_bytes() == b"w"


def test_names_that_leave_their_folder_are_refused(s3_root: str) -> None:
    storage.write(f"{s3_root}/set/../../evil", b"")
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
for write in (storage.write, storage.create):
    try:
        write({str(target / "x")!r}, Path({str(source)!r}))
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
        storage.write(str(tmp_path / "file" / "x"), b"data")


def _create(uri: str, barrier: object, value: bytes) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    os._exit(0 if storage.create(uri, value) else 1)


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


# ---- addresses -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("uri", ["s3a://bucket/run", "file:///x", "gs3://bucket/run", "S3://bucket/run"])
def test_an_unknown_scheme_is_refused_by_name(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    scheme = uri.partition("://")[0]
    calls = [storage.read_bytes, storage.open_stream, storage.stat, storage.list_files, storage.list_folders]
    calls += [storage.local_copy, storage.local_folder, storage.delete, storage.absolute, storage.decides_who_creates]
    calls += [lambda uri: storage.write(uri, b""), lambda uri: storage.create(uri, b"")]
    calls += [lambda uri: storage.write(uri, Path("file")), lambda uri: storage.create(uri, Path("file"))]
    for call in calls:
        with pytest.raises(ValueError, match=f"{scheme}://"):
            call(uri)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("root", ["gs://bucket/run", "https://host/run", "s3://", "s3:///run"])
def test_what_no_root_can_be_is_refused(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{root}: (a root is a folder or s3://bucket/prefix, not|names no bucket)"):
        storage.absolute(root)
    for command in (["status", root], ["render", "demo", "--root", root], ["doctor", "--root", root]):
        monkeypatch.setattr(sys, "argv", ["dnd", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code not in (0, None)
        assert root.partition("://")[0] + "://" in "".join(capsys.readouterr())
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("root", ["s3:/bucket/run", "gs:/bucket", "file:/x", "://bucket/run"])
def test_an_address_with_a_slash_too_few_is_no_folder(root: str) -> None:
    with pytest.raises(
        ValueError, match=f"{root}: a root is a folder or s3://bucket/prefix, not {root.split(':')[0]}://"
    ):
        storage.absolute(root)


# ---- what fsspec reads ---------------------------------------------------------------------------------------------
@pytest.fixture(params=["memory", "http"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder with a.txt and sub/b.txt in a file system that only fsspec reads."""
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    files = {"a.txt": b"one\ntwo\n", "sub/b.txt": b"three"}
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.pipe({f"/source/{name}": data for name, data in files.items()})
        yield "memory://source"
        memory.rm("/source", recursive=True)
        return
    for name, data in files.items():
        storage.write(str(tmp_path / "source" / name), data)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "source"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_sources_may_lie_wherever_fsspec_reads(source: str) -> None:
    found = list(storage.list_files(source))
    assert [(f.uri, f.size) for f in found] == [(f"{source}/a.txt", 8), (f"{source}/sub/b.txt", 5)]
    assert found[0] == storage.stat(f"{source}/a.txt") and list(storage.list_files(found[0].uri)) == found[:1]
    assert list(storage.open_stream(found[0].uri)) == [b"one\n", b"two\n"]
    if source.startswith("memory"):  # the server here knows no ranges
        assert storage.read_bytes(found[0].uri, 2, 3) == b"e\nt"
    assert storage.local_copy(found[1].uri).read_bytes() == b"three"
    assert storage.stat(f"{source}/none") is None and list(storage.list_files(f"{source}/none")) == []
    for read in (storage.read_bytes, storage.local_copy):
        with pytest.raises(FileNotFoundError, match="none"):
            read(f"{source}/none")
    with pytest.raises(ValueError, match="only read, as a source"):
        storage.write(f"{source}/a.txt", b"")


def test_another_content_has_another_etag() -> None:
    memory = fsspec.filesystem("memory")
    tags = set()
    for data in (b"one", b"two"):
        memory.pipe("/etags/x", data)
        tags.add(storage.stat("memory://etags/x"))
    memory.rm("/etags", recursive=True)
    assert len(tags) == 2


def test_a_file_system_that_is_not_installed_is_told() -> None:
    with pytest.raises(ValueError, match=r"gs://bucket/x: cannot be read here .*gcsfs"):
        storage.stat("gs://bucket/x")


# ---- links ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def folder_without_links(tmp_path: Path) -> Iterator[Path]:
    """A folder on exFAT through FUSE, which has neither hard links nor renames without replacing."""
    tools = ("mkfs.exfat", "mount.exfat-fuse", "losetup", "umount")
    if os.getuid() or any(shutil.which(tool) is None for tool in tools) or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root, /dev/fuse and `apt-get install exfat-fuse exfatprogs`")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    image.write_bytes(bytes(16 << 20))
    folder.mkdir()
    run = partial(subprocess.run, check=True, capture_output=True, text=True)
    run(["mkfs.exfat", image])
    device = run(["losetup", "-f", "--show", image]).stdout.strip()
    try:
        run(["mount.exfat-fuse", device, folder])
        yield folder
        run(["umount", folder])
    finally:
        run(["losetup", "-d", device])


def test_file_systems_without_hard_links(folder_without_links: Path) -> None:
    folder = folder_without_links
    (folder / "a").touch()
    with pytest.raises(OSError):
        os.link(folder / "a", folder / "b")
    test_create_never_overwrites(str(folder / "root"), folder)
    test_one_of_many_creators_wins(str(folder / "root"))
    test_one_of_many_processes_wins(folder)
    assert not storage.decides_who_creates(str(folder / "root"))  # between nodes
    assert not [path for path in folder.rglob(".*")]


def test_a_rename_that_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no links but the kernel can rename so: here the file's own links are used up."""
    monkeypatch.setattr(os, "link", _no_links)
    test_create_never_overwrites(str(tmp_path / "root"), tmp_path)
    test_one_of_many_creators_wins(str(tmp_path / "root"))
    assert storage.decides_who_creates(str(tmp_path))


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_local_folder_decides_who_creates(tmp_path: Path) -> None:
    assert storage.decides_who_creates(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_links_are_followed_to_read_but_in_no_circle(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    for path in (root / "set" / "x", other / "y"):
        storage.write(str(path), b"data")
    (root / "set" / "up").symlink_to(root)
    (root / "set" / "other").symlink_to(other)
    (other / "back").symlink_to(root / "set")
    (root / "set" / "nothing").symlink_to(tmp_path / "gone")
    found = [f.uri.removeprefix(f"{root}/") for f in storage.list_files(str(root))]
    assert found == ["set/other/y", "set/x"]
    assert storage.list_folders(str(root / "set")) == []  # what is found there may be removed
    (root / "set" / "link").symlink_to(other / "y")
    storage.delete(str(root / "set" / "link"))
    assert (other / "y").exists() and not (root / "set" / "link").is_symlink()


def test_a_folder_that_goes_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    for name in ("a/1", "b/2", "c/3"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    listed = storage.list_files(str(tmp_path))
    assert next(listed).uri.endswith("a/1")
    shutil.rmtree(tmp_path / "b")
    assert [file.uri.rpartition("/")[2] for file in listed] == ["3"]


def test_a_pipe_and_a_device_are_no_files_and_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        for read in (storage.read_bytes, storage.open_stream):
            with pytest.raises(OSError, match=f"not a file.*{name}"):
                read(str(tmp_path / name))
    assert storage.read_bytes("/dev/null") == b"", "what a user names is read"


def test_what_an_option_names_lies_under_the_root_or_at_a_known_address() -> None:
    for name, address in (("a/b", "/r/a/b"), ("/a", "/a"), ("s3://bucket/a", "s3://bucket/a"), ("a:b", "/r/a:b")):
        assert storage.below("/r", name) == address
    for name in ("s3://", "s3:/bucket", "gs://bucket/a", "://a"):
        with pytest.raises(ValueError, match=f"{name}: (a root is a folder or|names no bucket)"):
            storage.below("/r", name)


def test_nothing_is_written_through_a_link_to_nothing(tmp_path: Path) -> None:
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a link to nothing.*/file"):
        storage.create(str(tmp_path / "file"), b"data")
    with pytest.raises(NotADirectoryError, match=r"no folder, or a link to nothing.*/folder"):
        storage.create(str(tmp_path / "folder/file"), b"data")
    (tmp_path / "taken").touch()
    with pytest.raises(NotADirectoryError, match="/taken"):
        storage.create(str(tmp_path / "taken/file"), b"data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "taken"]
