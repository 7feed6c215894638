"""Every file and member that is not taken is rejected with a reason, or counted in one warning with an example."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import tarfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from raw_documents import read_all, read_sources, texts, write_tar

from data_specs.records import RawDocument, Reason
from data_specs.source import Source
from data_specs.sources import ImageSource, PdfSource, TextSource

Pairs = list[tuple[str, bytes | None]]


def images(uri: Path, **options: object) -> list[RawDocument]:
    return read_all(ImageSource(uri=str(uri), **options), val_share=0)["train"]  # type: ignore[arg-type]


def taken(found: list[RawDocument]) -> list[tuple[str, int]]:
    """(id, class) of what is used."""
    return [(raw.id, raw.cls) for raw in found if not raw.reason]


def refused(found: list[RawDocument]) -> list[tuple[str, Reason | None]]:
    return [(raw.id, raw.reason) for raw in found if raw.reason]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


# ---- the cases -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cases(shared: Path) -> Path:
    return shared / "cases"


def test_a_hard_link_is_its_file_and_a_symbolic_link_is_rejected_by_name(cases: Path) -> None:
    found = images(cases / "tar/link.tar")
    assert refused(found) == [("c.jpg", Reason.NOT_A_FILE)]
    a, b = (raw for raw in found if not raw.reason)
    assert (a.id, b.id, a.data) == ("a", "b", b.data) and len(a.data) == 693


def test_appledouble_is_skipped_and_images_keep_their_classes(cases: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = images(cases / "tar/mac.tar")
    assert [(raw.id, len(raw.data), raw.reason) for raw in found] == [("0001", 693, None), ("0002", 693, None)]
    with tarfile.open(cases / "tar/mac.tar") as tar:
        classes = [int(tar.extractfile(f"./{name}.cls").read()) for name in ("0001", "0002")]  # type: ignore[union-attr]
    assert [raw.cls for raw in found] == classes
    assert "4 AppleDouble (for instance '._0001.cls')" in caplog.text


def test_joined_tars_are_read_whole(cases: Path) -> None:
    found = images(cases / "tar/cat.tar")
    assert taken(found) == [("train.v1/0001", 1), ("train.v1/0002", 2), ("a", 7)]
    assert refused(found) == [(key, Reason.NO_CLASS) for key in "bcde"]
    assert [raw.detail for raw in found[3:]] == ["n01440764", "-1", "٣", "99999999999"]


def test_dots_and_blanks_in_names_are_webdatasets_keys(cases: Path) -> None:
    assert taken(images(cases / "tar/dotkey.tar")) == [("S_02 2.0", 1), ("img.v2.left", 2)]


def test_a_json_array_is_its_passages(cases: Path) -> None:
    found = read_all(TextSource(uri=str(cases / "misc/array.json")), val_share=0)["train"]
    assert texts(found) == [(f"a{n}", "the quick brown fox jumps over the lazy dog again") for n in range(3)]


# ---- their kinds ---------------------------------------------------------------------------------------------------
SAMPLE: Pairs = [("a.jpg", b"A"), ("a.cls", b"1"), ("b.JPG", b"B"), ("b.cls", b"2")]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("packing", ["", *PACKERS, "tgz"])
def test_members_in_every_format_and_packing(format: int, packing: str, tmp_path: Path) -> None:
    long = "" if format == tarfile.USTAR_FORMAT else "/" + "n" * 200 + "-ä 漢"
    names = [f"folder/sub{long}/{n}" for n in ("a.jpg", "a.cls", "b.jpg", "b.cls")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.DIRTYPE, "x.jpg")):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
        for name, data in zip(names, (b"A", b"3", b"", b"4")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / {"": "x.TAR", "tgz": "x.TGZ"}.get(packing, f"x.tar.{packing}")
    pack = (PACKERS | {"": bytes, "tgz": gzip.compress})[packing]
    path.write_bytes(pack(buffer.getvalue()))
    assert [(raw.id, raw.data, raw.cls) for raw in images(path)] == [
        (f"folder/sub{long}/a", b"A", 3),
        (f"folder/sub{long}/b", b"", 4),
    ]


def test_what_is_no_sample_is_rejected_or_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members: Pairs = [
        *SAMPLE,
        *[("a.jpg", b"again"), ("c.jpg", b"C"), ("c.png", b"C2"), ("c.cls", b"x"), ("d.cls", b"1"), ("notes.txt", b"")],
        *[(".jpg", b"no key"), (" .png", b"blank"), ("nosuffix", b""), ("e.json", b"{}"), ("e.__key__", b"bad")],
        *[("f.x.jpg", b"F1"), ("f.y.jpg", b"F2"), ("f.cls", b"7"), ("f.y.cls", b"8"), ("__MACOSX/a.jpg", b"mac")],
    ]
    found = images(write_tar(tmp_path / "x.tar", members))
    assert taken(found) == [("a", 1), ("b", 2), ("f.x", 7), ("f.y", 8)]
    assert sorted(refused(found), key=str) == [
        (" .png", Reason.NAME_NOT_USABLE),
        (".jpg", Reason.NAME_NOT_USABLE),
        ("a.jpg", Reason.SECOND_OF_KEY),
        ("c", Reason.NO_CLASS),
        ("c", Reason.SECOND_OF_KEY),
    ]
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for said in ("'d.cls'", "1 .txt (for instance 'notes.txt')", "'nosuffix'", "1 .json", "AppleDouble"):
        assert said in warning
    assert len({raw.key for raw in found}) == len(found)


def test_members_in_other_orders_are_the_same_samples_as_webdatasets(tmp_path: Path) -> None:
    for number, members in enumerate([SAMPLE, SAMPLE[::-1], [SAMPLE[1], SAMPLE[0], SAMPLE[3], SAMPLE[2]]]):
        path = write_tar(tmp_path / f"{number}.tar", members)
        theirs = webdataset.WebDataset(str(path), shardshuffle=False)
        wanted = sorted((s["__key__"], s["jpg"], int(s["cls"])) for s in theirs)
        assert sorted((raw.id, raw.data, raw.cls) for raw in images(path)) == wanted


def test_hard_links_in_chains_and_to_nowhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, target in (("a.jpg", ""), ("a.cls", ""), ("b.jpg", "a.jpg"), ("b.cls", "./a.cls"), ("c.jpg", "b.jpg"),
                             ("c.cls", "a.cls"), ("d.jpg", "none.jpg"), ("e.jpg", "/etc/passwd")):  # fmt: skip
            info = tarfile.TarInfo(name)
            data = b"" if target else {"a.jpg": b"A", "a.cls": b"5"}[name]
            info.size, info.linkname = len(data), target
            info.type = tarfile.LNKTYPE if target else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
    found = images(tmp_path / "x.tar")
    assert [(raw.id, raw.data, raw.cls) for raw in found if not raw.reason] == [(k, b"A", 5) for k in "abc"]
    assert refused(found) == [("d.jpg", Reason.NOT_A_FILE), ("e.jpg", Reason.NOT_A_FILE)]


@pytest.mark.parametrize("tail", [b"", bytes(10_240), b"garbage" * 100])
def test_joined_tars_with_anything_behind(tail: bytes, tmp_path: Path) -> None:
    first, second = (
        write_tar(tmp_path / f"{n}.tar", [(f"{n}.pdf", b"%PDF" * 300)]).read_bytes() for n in ("one", "two")
    )
    path = tmp_path / "joined.tar"
    path.write_bytes(first + second + tail)
    source = PdfSource(uri=str(path))
    if tail.startswith(b"g"):
        with pytest.raises(ValueError, match=r"joined\.tar: a damaged tar"):
            read_all(source)
    else:
        assert [raw.id for raw in read_all(source, val_share=0)["train"]] == ["one", "two"]


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".ndjson", ".JSONL", ".json", *(f".jsonl.{p}" for p in PACKERS), ".NDJSON.GZ"]
)
def test_lines_in_every_suffix_and_packing(suffix: str, tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"id": str(i), "text": "x" * i}).encode() + b"\n" for i in range(300))
    pack = PACKERS.get(suffix.lower().rpartition(".")[2], bytes)
    (tmp_path / f"a{suffix}").write_bytes(pack(lines[:9000]) + pack(lines[9000:]))
    found = read_all(TextSource(uri=str(tmp_path)), val_share=0, documents_per_unit=70)["train"]
    assert texts(found) == [(str(i), "x" * i) for i in range(300)]


@pytest.mark.parametrize("packing", ["", *PACKERS])
def test_json_arrays_are_their_elements(packing: str, tmp_path: Path) -> None:
    array = '\ufeff [{"id": 1, "text": "ä]"},{"text":"\\"[,"}\n , ["no passage"]]\n'.encode()
    (tmp_path / (f"a.JSON.{packing}" if packing else "a.json")).write_bytes(PACKERS.get(packing, bytes)(array))
    found = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert texts(found[:2]) == [("1", "ä]"), ("item-2", '"[,')] and found[2].data == b'["no passage"]'


@pytest.mark.parametrize("packing", ["", "gz"])
def test_objects_of_several_lines_are_one_passage_each(packing: str, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "ä } {"}, {"text": "of\nlines", "more": [{}]}]
    data = "\ufeff\r\n" + "\r\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in rows) + "\r\n"
    (tmp_path / (f"a.json.{packing}" if packing else "a.json")).write_bytes(PACKERS.get(packing, bytes)(data.encode()))
    found = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert texts(found) == [("a", "ä } {"), ("item-2", "of\nlines")]


@pytest.mark.parametrize(
    ("content", "offered"),
    [
        ('{"data": [\n{"text": "a"}]}', [("item-1", None)]),  # rendering rejects it: no text
        ('{"id": "x",\n"text": "y"}\n{]', [("x", None), ("a.json", Reason.TYPE_NOT_READ)]),
        ('{"id": "cut\n{"id": "b", "text": "c"}\n', [("line-1", None), ("b", None)]),  # lines, the first damaged
        ('\n{"id": "a", "text": "b"}\n{\n', [("a", None), ("line-3", None)]),
    ],
)
def test_a_json_file_is_lines_unless_its_first_object_ends_on_a_later_one(
    content: str, offered: list[tuple[str, Reason | None]], tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(content)
    found = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert [(raw.id, raw.reason) for raw in found] == offered


def test_files_that_hold_nothing_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in (("a.jsonl", ""), ("b.json", " \n\n"), ("c.jsonl", '{"text": "x"}')):
        (tmp_path / name).write_text(content)
    assert len(read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]) == 1
    assert "2 empty (for instance" in caplog.text and "a.jsonl" in caplog.text


@pytest.mark.parametrize("end", ["", ", {]", "] [1]"])
def test_a_damaged_json_array_is_a_reject_beside_its_elements(end: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": "x", "text": "y"}' + end)
    found = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert [(raw.id, raw.reason) for raw in found] == [("x", None), ("a.json", Reason.TYPE_NOT_READ)]


@pytest.mark.parametrize("packing", PACKERS)
def test_damaged_packed_files_are_refused_by_name(packing: str, tmp_path: Path) -> None:
    data = PACKERS[packing](bytes(range(256)) * 100)
    for name, broken in (("cut", data[:-9]), ("flipped", bytes(8) + data[8:]), ("none", b"not packed")):
        path = tmp_path / f"{name}.jsonl.{packing}"
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{name}\.jsonl\.{packing}: damaged"):
            read_all(TextSource(uri=str(path)))


@pytest.mark.parametrize(
    ("source", "files", "refusals", "said"),
    [
        (TextSource, ["a.jsonl", "b.txt", "c.csv", "README"], [], ["1 .csv", "1 .txt", "1 without a suffix"]),
        (PdfSource, ["a.pdf", "b.PDF", "c.pdf.gz", "d.djvu", "e.zip", "._a.pdf"], [("c", Reason.TYPE_NOT_READ)],
         ["1 .djvu (for instance 'd.djvu')", "1 .zip", "._a.pdf"]),
        (ImageSource, ["k/a.jpg", "k/b.JPEG", "top.png", "k/c.tiff", "k/Thumbs.db", "k/.DS_Store", "k/._a.jpg"],
         [("top.png", Reason.NO_CLASS)], ["Thumbs.db", ".DS_Store", "._a.jpg"]),
    ],
)  # fmt: skip
def test_other_files_of_a_folder(
    source: type[Source], files: list[str], refusals: list[tuple[str, Reason]], said: list[str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'{"id": "a", "text": "x"}\n')
    found = read_all(source(uri=str(tmp_path)), val_share=0)["train"]  # type: ignore[call-arg]
    assert refused(found) == refusals
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(tmp_path) in warning and all(one in warning for one in said)
    assert len(found) + sum(
        int(part.split()[0]) for part in warning.partition("kind ")[2].partition(": ")[2].split("), ")
    ) == len(files)


def test_links_and_pipes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "b.pdf.part").write_bytes(b"%PDF")
    for name, target in (("gone.pdf", "none"), ("itself.pdf", "itself.pdf"), ("up", "."), ("linked.pdf", "a.pdf")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.pdf")
    found = read_all(PdfSource(uri=str(tmp_path)), val_share=0)["train"]
    assert [(raw.id, raw.data) for raw in found] == [("a", b"%PDF"), ("linked", b"%PDF")]
    for said in ("2 link to nothing", "1 link to a folder above", "1 neither file nor folder", "1 still being written"):
        assert said in caplog.text


def test_names_on_a_disk_may_be_any_bytes(tmp_path: Path) -> None:
    (tmp_path / b"\xff.pdf".decode("utf-8", "surrogateescape")).write_bytes(b"%PDF")
    [found] = read_all(PdfSource(uri=str(tmp_path)), val_share=0)["train"]
    assert (found.id, found.origin, found.data) == ("?", "?.pdf", b"%PDF")


# ---- img2dataset ---------------------------------------------------------------------------------------------------
def test_img2datasets_layout_is_one_class_with_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members: Pairs = []
    for number in range(5):
        members += [(f"00000000{number}.jpg", b"J%d" % number), (f"00000000{number}.json", b"{}")]
        members += [(f"00000000{number}.txt", f" a  caption {number}\n".encode())] if number != 3 else []
    write_tar(tmp_path / "00000.tar", members)
    pq.write_table(pa.table({"url": ["x"], "caption": ["y"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    folder = tmp_path / "files/00000"
    folder.mkdir(parents=True)
    for name, data in members:
        (folder / name).write_bytes(data or b"")
    for uri in (tmp_path / "00000.tar", folder, tmp_path / "files", tmp_path):
        found = read_sources([ImageSource(uri=str(uri), classes="none")], val_share=0, documents_per_unit=3)["train"]
        assert len(found) == (10 if uri == tmp_path else 5)
        for raw in found:
            number = raw.data.decode()[1:]
            assert not raw.reason and raw.cls == 0
            assert raw.info.get("text", "") == ("" if number == "3" else f"a caption {number}")
    assert "11 .json" in caplog.text and "1 .parquet" in caplog.text


def test_captions_of_files_are_those_of_the_same_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = (
        "a.jpg",
        "a.m.jpg",
        "a.m.txt",
        "a.txt",
        "b.caption",
        "b.jpg",
        "b.txt",
        "C.JPG",
        "C.TXT",
        "d.txt",
        "e.webp",
    )
    for name in written:
        (tmp_path / name).write_text(name)
    found = read_all(ImageSource(uri=str(tmp_path), classes="none"), val_share=0)["train"]
    assert [(raw.id, raw.info.get("text")) for raw in found] == [
        ("C.JPG", "C.TXT"), ("a.jpg", "a.txt"), ("a.m.jpg", "a.m.txt"), ("b.jpg", "b.txt"), ("e.webp", None)
    ]  # fmt: skip
    assert "1 .caption (for instance 'b.caption'), 1 .txt (for instance 'd.txt')" in caplog.text


def test_fields_of_a_tar_that_are_not_used_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.x.jpg", b"J"), ("a.x.cls", b"1"), ("a.x.txt", b""), ("a.cls", b"2")])
    assert taken(images(path)) == [("a.x", 1)]
    assert "1 .cls (for instance 'a.cls'), 1 .txt (for instance 'a.x.txt')" in caplog.text


# ---- rows ----------------------------------------------------------------------------------------------------------
def test_classes_of_rows_that_are_none_are_rejected(tmp_path: Path) -> None:
    columns = {
        "big": pa.array([1, 2**31 - 1, 2**31, 2**63], pa.uint64()),
        "true": pa.array([True, False, None, True]),
        "name": pa.array([b"cat", b"dog", b"", None]),
    }
    wanted = {"big": [1, 2**31 - 1, None, None], "true": [1, 0, None, 1], "name": [0, 1, None, None]}
    for name, labels in columns.items():
        pq.write_table(pa.table({"image": [b"A"] * 4, "label": labels}), tmp_path / f"{name}.parquet")
        found = images(tmp_path / f"{name}.parquet")
        assert [None if raw.reason == Reason.NO_CLASS else raw.cls for raw in found] == wanted[name]
    pq.write_table(pa.table({"image": [b"A"], "label": [[1]]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"list\.parquet: column 'label' holds list"):
        images(tmp_path / "list.parquet")


def test_texts_of_rows_are_text_or_rejected(tmp_path: Path) -> None:
    for name, column in (("bytes", [b"x", b"\xff"]), ("decimal", [Decimal("1.5"), None])):
        pq.write_table(pa.table({"id": [b"1", b"2"], "text": column}), tmp_path / f"{name}.parquet")
    found = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert [(raw.id, raw.reason) for raw in found] == [
        ("1", None), ("2", Reason.BROKEN_ROW), ("1", Reason.BROKEN_ROW), ("2", None)
    ]  # fmt: skip
    assert json.loads(found[0].data) == {"text": "x"} and json.loads(found[3].data) == {"text": None}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_lines_that_are_no_utf_8_are_one_reject_that_says_so(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "a"}\n{"text": "b"}\n'.encode(encoding))
    [found] = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert (found.id, found.reason) == ("a.jsonl", Reason.TYPE_NOT_READ) and "iconv" in found.detail


def test_an_empty_id_has_a_key(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "", "text": "x"}\n')
    [found] = read_all(TextSource(uri=str(tmp_path)), val_share=0)["train"]
    assert (found.id, found.key) == ("", "e3b0c442")


def test_a_caption_over_the_limit_is_a_reject(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"J"), ("a.txt", b"x" * 200), ("b.jpg", b"K"), ("b.txt", b"y")])
    found = read_all(ImageSource(uri=str(path), classes="none"), 100, val_share=0)["train"]
    assert [(raw.id, raw.reason) for raw in found] == [("a", Reason.TOO_LARGE), ("b", None)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'[{"text": "one"}]', "a JSON list, no object with the key text"),
        (b'{"txt": "one"}', "a JSON dict, no object with the key text"),
        (b'"one"', "a JSON str, no object"),
        (b"one", "no JSON"),
        (b'{"text": 5}', "text is int, not text"),
    ],
)
def test_a_line_that_is_no_passage_says_what_it_is(line: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TextSource(uri="texts").text(line)
