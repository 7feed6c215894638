"""Sources from strangers: memory stays within the document's limit, and a set gives nothing but its own files."""

from __future__ import annotations

import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_documents import read_all

from data_specs.records import Reason
from data_specs.sources import ImageSource, PdfSource, TextSource
from data_specs.sources.arxiv import ArxivSource

MEGABYTE = 1 << 20
EXTENDED = {
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
    "pax": tarfile.XHDTYPE,
    "pax for all": tarfile.XGLTYPE,
}
MEASURED = """
import json, resource, sys
import pyarrow.parquet
from data_specs.records import SourceUnit
from data_specs.source import Source
from data_specs.sources.planning import cut
from data_specs.sources.reading import read_unit
from data_specs.sections import Render
for line in sys.stdin:
    source, max_bytes = json.loads(line)
    source = Source.model_validate(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, said = [], ""
    try:
        for _, unit in cut(Render(sources=[source], val_share=0), [source]):
            found += [[raw.id, raw.reason, len(raw.data)] for raw in read_unit(unit, max_bytes)]
    except ValueError as error:
        said = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"found": found, "said": said, "grown": grown >> 10}))
"""


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def claims_gigabytes(path: Path, kind: bytes) -> None:
    with path.open("wb") as file:  # sparse: the disk holds nothing of it
        file.write(header("x", 4 << 30, kind))
        file.truncate(4 << 30)


def large_member(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(header("large.pdf", size, tarfile.REGTYPE))
        file.seek(512 + -(-size // 512) * 512)
        file.write(header("small.pdf", 4, tarfile.REGTYPE) + b"%PDF".ljust(512, b"\0") + bytes(1024))


def measured(sources: dict[str, tuple[dict[str, object], int]]) -> dict[str, dict[str, Any]]:
    """What sources give under limits in a process of its own, one after the other, and by how many MiB that grew."""
    lines = "".join(json.dumps(source) + "\n" for source in sources.values())
    done = subprocess.run([sys.executable, "-c", MEASURED], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(sources, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What comes of each hostile file, the harmless first."""
    folder = tmp_path_factory.mktemp("hostile")
    sources: dict[str, tuple[dict[str, object], int]] = {}
    for name, size in (("a member over the limit", 300 << 20), ("a member of gigabytes", 5 << 30)):
        large_member(folder / f"{name}.tar", size)
        sources[name] = {"kind": "pdf", "uri": str(folder / f"{name}.tar")}, MEGABYTE
    for name, kind in EXTENDED.items():
        claims_gigabytes(folder / f"{name}.tar", kind)
        sources[name] = {"kind": "pdf", "uri": str(folder / f"{name}.tar")}, MEGABYTE
    packed = pa.table({"image": pa.array([bytes(4 << 20)] * 64)})
    pq.write_table(packed, folder / "unpacks.parquet", compression="zstd", use_dictionary=False)
    rows = pa.table({"image": pa.array([{"bytes": bytes(4 << 20), "path": "a"}] * 64), "text": ["x" * (4 << 20)] * 64})
    pq.write_table(rows, folder / "rows.parquet", compression="zstd")
    assert (folder / "rows.parquet").stat().st_size < 5_000
    images: dict[str, object] = {"kind": "images", "classes": "none"}
    for name in ("unpacks", "rows"):
        sources[f"images: {name}"] = images | {"uri": str(folder / f"{name}.parquet")}, 8 << 20
    sources["images: rows over the limit"] = images | {"uri": str(folder / "rows.parquet")}, MEGABYTE
    sources["texts: rows"] = {"kind": "text", "uri": str(folder / "rows.parquet")}, 8 << 20
    return measured(sources)


def test_no_file_takes_more_memory_than_its_documents_may(hostile: dict[str, dict[str, Any]]) -> None:
    assert {name: made["grown"] for name, made in hostile.items() if made["grown"] > 60} == {}, "64 rows have 256 MiB"


@pytest.mark.parametrize("name", EXTENDED)
def test_headers_that_claim_gigabytes_are_refused_by_name(name: str, hostile: dict[str, dict[str, Any]]) -> None:
    assert f"{name}.tar: a damaged tar (an extended header of 4294967296 bytes)" in hostile[name]["said"]


@pytest.mark.parametrize("name", ["a member over the limit", "a member of gigabytes"])
def test_members_larger_than_the_limit_are_rejected_unread(name: str, hostile: dict[str, dict[str, Any]]) -> None:
    assert hostile[name]["found"] == [["large", Reason.TOO_LARGE, 0], ["small", None, 4]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("images: rows", None),
        ("texts: rows", None),
        ("images: unpacks", Reason.TOO_LARGE),
        ("images: rows over the limit", Reason.TOO_LARGE),
    ],
)
def test_rows_are_used_or_rejected_one_by_one(name: str, reason: Reason | None, hostile: dict[str, Any]) -> None:
    assert [found for _, found, _ in hostile[name]["found"]] == [reason] * 64


def test_extended_headers_without_end_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes((header("x", 4, tarfile.GNUTYPE_LONGNAME) + b"abc".ljust(512, b"\0")) * 5000)
    with pytest.raises(ValueError, match=r"x\.tar: a damaged tar \(extended headers without end"):
        read_all(PdfSource(uri=str(path)))


def test_a_tar_that_ends_before_its_member_does_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(header("large.pdf", 300 << 20, tarfile.REGTYPE) + bytes(2048))
    with pytest.raises(ValueError, match=r"x\.tar: a damaged tar"):
        read_all(PdfSource(uri=str(tmp_path / "x.tar")))


def test_more_members_than_a_tar_may_have_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_specs.sources.tars.MAX_MEMBERS", 1000)
    block = header("x.pdf", 0, tarfile.REGTYPE)
    (tmp_path / "x.tar").write_bytes(block * 1000 + bytes(1024))
    assert len(read_all(PdfSource(uri=str(tmp_path / "x.tar")), val_share=0)["train"]) == 1000
    (tmp_path / "x.tar").write_bytes(block * 1001 + bytes(1024))
    with pytest.raises(ValueError, match=r"x\.tar: a damaged tar \(more than 1000 members"):
        read_all(PdfSource(uri=str(tmp_path / "x.tar")))


@pytest.mark.long
def test_a_million_members_are_refused_within_a_few_hundred_megabytes(tmp_path: Path) -> None:
    block = header("x.pdf", 0, tarfile.REGTYPE)
    with (tmp_path / "x.tar").open("wb") as file:
        for _ in range(1000):
            file.write(block * 1000)
    made = measured({"million": ({"kind": "pdf", "uri": str(tmp_path / "x.tar")}, MEGABYTE)})["million"]
    assert "members" in made["said"] and made["grown"] < 400


def test_ids_of_megabytes_do_not_reach_the_plan(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["i" * MEGABYTE] * 64, "text": ["x"] * 64}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps({"id": "j" * MEGABYTE, "text": "y"}) + "\n")
    found = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert {len(raw.id) for raw in found} == {1024} and len({raw.key for raw in found}) == 65


def test_packed_files_that_outgrow_the_cache_are_refused_when_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DND_CACHE_BYTES", str(MEGABYTE))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a", "text": "' + b" " * (3 * MEGABYTE) + b'"}\n'))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: unpacks to more than the cache may hold, 1048576 bytes"):
        read_all(TextSource(uri=str(tmp_path / "a.jsonl.gz")))
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("a.pdf")
        info.size = 2 * MEGABYTE
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(ValueError, match=r"b\.tar\.gz: unpacks to more than the cache may hold"):
        read_all(PdfSource(uri=str(tmp_path / "b.tar.gz")))
    assert not [p for p in tmp_path.glob("cache/*") if not p.name.startswith("lock")]


def test_a_line_of_metadata_without_end_is_counted_as_broken(tmp_path: Path) -> None:
    good = json.dumps({"id": "2401.00001", "license": None}).encode()
    (tmp_path / "snapshot.json.gz").write_bytes(gzip.compress(good + b"\n" + b"[" * (40 * MEGABYTE) + b"\n" + good))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = ArxivSource(uri=str(tmp_path), metadata=str(tmp_path / "snapshot.json.gz")).prepare(str(tmp_path / "in"))
    assert isinstance(source, ArxivSource) and source.metadata
    assert json.loads(Path(f"{source.metadata}.json").read_text())["broken_lines"] == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


# ---- `datasets` sets -----------------------------------------------------------------------------------------------
@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home/.aws/credentials"
    path.parent.mkdir(parents=True)
    path.write_text("aws_secret_access_key = s3cr3t\n")
    return path


def nothing_leaked(folder: Path) -> bool:
    return not any(b"s3cr3t" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", ["absolute", "upwards", "link"])
def test_a_sets_rows_name_no_file_outside_of_it(way: str, secret: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    link = folder / "link.png"
    link.symlink_to(secret)
    path = {"absolute": str(secret), "upwards": f"{folder}/../home/.aws/credentials", "link": str(link)}[way]
    images = pa.array([{"bytes": None, "path": path}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": images, "label": [0]}), folder / "train.parquet")
    with pytest.raises(ValueError, match=r"names the file .* which is outside of the set"):
        ImageSource(uri=f"datasets:{folder}").prepare(str(tmp_path / "inputs"))
    assert nothing_leaked(tmp_path / "inputs") if (tmp_path / "inputs").exists() else True


@pytest.mark.parametrize("way", ["absolute", "upwards"])
def test_a_sets_readme_names_no_file_outside_of_it(way: str, secret: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    secret = secret.rename(secret.with_name("credentials.txt"))
    path = {"absolute": str(secret), "upwards": "../home/.aws/credentials.txt"}[way]
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n")
    with pytest.raises(ValueError, match="cannot be opened as a data set") as caught:
        TextSource(uri=f"datasets:{folder}").prepare(str(tmp_path / "inputs"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "inputs").exists() or nothing_leaked(tmp_path / "inputs")
