"""Passages and PDFs from every kind of file: what is listed is what is read, each document once, in one split."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_documents import LIMITS, listed_ids, read_all, texts, write_tar

from data_specs import storage
from data_specs.records import Reason
from data_specs.sections import Render
from data_specs.sources import PdfSource, TextSource, docstrings, reading
from data_specs.sources.docstrings import DocstringSource
from data_specs.sources.planning import cut
from data_specs.sources.reading import read_unit


# ---- text ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def passages(shared: Path) -> list[dict[str, str]]:
    """The hard passages and the first of the ordinary ones."""
    lines = [json.loads(line) for line in (shared / "data/text/passages_hard.jsonl").open(encoding="utf-8")]
    ordinary = (shared / "data/text/passages.jsonl").open(encoding="utf-8")
    return lines + [json.loads(line) for line, _ in zip(ordinary, range(300))]


def test_lines_packed_lines_and_rows_give_the_same_documents(passages: list[dict[str, str]], tmp_path: Path) -> None:
    lines = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in passages).encode("utf-8", "surrogatepass")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/a.jsonl").write_bytes(lines)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/a.jsonl.gz").write_bytes(gzip.compress(lines[:20_000]) + gzip.compress(lines[20_000:]))
    (tmp_path / "rows").mkdir()
    table = pa.Table.from_pylist(passages)
    pq.write_table(table, tmp_path / "rows/a.parquet", row_group_size=70)
    made = {
        name: read_all(TextSource(kind="text", uri=str(tmp_path / name)), val_share=0.2, documents_per_unit=32)
        for name in ("plain", "packed", "rows")
    }
    wanted = [(p["id"], p["text"]) for p in passages]
    for splits in made.values():
        assert sorted(texts(splits["train"]) + texts(splits["val"])) == sorted(wanted)
        assert texts(splits["val"]) == texts(made["plain"]["val"]) and len(splits["val"]) > 50
        assert not {o.id for o in splits["val"]} & {o.id for o in splits["train"]}


def test_a_source_may_lie_wherever_fsspec_reads() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/texts/a.jsonl", b'{"id": "a", "text": "x"}\n')
    source = TextSource(uri="memory://texts").prepare("/unused")
    splits = read_all(source, val_share=0.0, documents_per_unit=8)
    memory.rm("/texts", recursive=True)
    assert texts(splits["train"]) == [("a", "x")]
    with pytest.raises(ValueError, match=r"^foo://texts: foo:// is not known"):
        read_all(TextSource(uri="foo://texts").prepare("/unused"), val_share=0.0, documents_per_unit=8)


def test_units_of_a_packed_file_say_so_and_unpack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n'))
    source = TextSource(kind="text", uri=str(path))
    units = [unit for _, unit in cut(Render(sources=[source], documents_per_unit=1), [source])]
    assert [unit.affinity for unit in units] == [str(path)] * 2
    assert [o.data for unit in units for o in read_unit(unit, LIMITS.document_bytes)] == [
        b'{"id": "a", "text": "x"}\n',
        b'{"id": "b", "text": "y"}\n',
    ]
    assert len([p for p in (tmp_path / "cache").iterdir() if not p.name.startswith("lock")]) == 1


def test_lines_that_are_no_passages_are_offered_by_number(tmp_path: Path) -> None:
    lines = [b'{"id": null, "text": "x"}', b"{broken", b"", b"[" * 100_000, b'{"text": "x"}', b'{"id": 7, "text": "y"}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    offered = read_all(TextSource(kind="text", uri=str(path)), val_share=0)["train"]
    assert [o.id for o in offered] == ["line-1", "line-2", "line-4", "line-5", "7"]
    assert [o.data.strip() for o in offered] == [line for line in lines if line]


def test_a_line_over_the_limit_is_rejected_and_its_neighbours_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": "a", "text": "x"}}\n{{"id": "b", "text": "{"y" * 5000}"}}\n{{"id": "c", "text": "z"}}\n')
    offered = read_all(TextSource(kind="text", uri=str(path)), 1000, val_share=0)["train"]
    assert [(o.id, o.reason, bool(o.data)) for o in offered] == [
        ("a", None, True),
        ("b", Reason.TOO_LARGE, False),
        ("c", None, True),
    ]


def test_ids_that_come_twice_keep_all_their_documents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text('{"id": "same", "text": "1"}\n{"id": "same", "text": "2"}\n')
    source = TextSource(kind="text", uri=str(tmp_path))
    offered = read_all(source, val_share=0.5)
    [split] = [documents for documents in offered.values() if documents]
    assert len({o.key for o in split}) == 4 and split[0].key == "same" and {o.id for o in split} == {"same"}
    assert [o.key for o in split] == [
        o.key for documents in read_all(source, val_share=0.5).values() for o in documents
    ]


def test_tables_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    source = TextSource(kind="text", uri=str(path))
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"a\.parquet: not a Parquet file"):
        listed_ids(source)
    pq.write_table(pa.table({"body": ["x"]}), path)
    with pytest.raises(ValueError, match=r"has no column 'text'; it has body"):
        listed_ids(source)
    pq.write_table(pa.table({"text": ["x", None, "y"]}), path)
    assert texts(read_all(source, val_share=0)["train"]) == [
        ("a.parquet#0", "x"),
        ("a.parquet#1", None),
        ("a.parquet#2", "y"),
    ]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a"}\n' * 9)[:-9])
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz: damaged"):
        listed_ids(TextSource(kind="text", uri=str(tmp_path / "b.jsonl.gz")))


def test_a_table_that_changed_since_planning_fails_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"]}), path)
    source = TextSource(kind="text", uri=str(path))
    [(_, unit)] = cut(Render(sources=[source]), [source])
    pq.write_table(pa.table({"text": ["another"]}), path)
    with pytest.raises(ValueError, match="is not the file that was planned"):
        list(read_unit(unit, LIMITS.document_bytes))


def test_tables_and_tars_are_read_by_ranges_over_s3(s3_root: str, tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": f"text {i}"} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=100)
    storage.write(f"{s3_root}/text/a.parquet", tmp_path / "a.parquet")
    made = read_all(TextSource(kind="text", uri=f"{s3_root}/text"), val_share=0.1, documents_per_unit=50)
    assert sorted(texts(made["train"] + made["val"])) == sorted((r["id"], r["text"]) for r in rows)
    tar = write_tar(tmp_path / "x.tar", [("d/1.pdf", b"%PDF-1"), ("d", None), ("d/2.pdf", b""), ("d/3.pdf", b"%PDF-3")])
    storage.write(f"{s3_root}/pdf/x.tar", tar)
    pdfs = read_all(PdfSource(kind="pdf", uri=f"{s3_root}/pdf"), val_share=0)["train"]
    assert [(o.id, o.data) for o in pdfs] == [("x/d/1", b"%PDF-1"), ("x/d/2", b""), ("x/d/3", b"%PDF-3")]


# ---- PDFs ----------------------------------------------------------------------------------------------------------
def test_pdfs_of_a_folder_of_tars_and_one_file_are_the_same_documents(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "data/pdf/good").glob("*.pdf"))[:12]
    members = [(f"good/{path.name}", path.read_bytes()) for path in paths]
    write_tar(tmp_path / "one.tar", [("good", None), *members[:7]])
    write_tar(tmp_path / "two.tar", members[7:])
    offered = read_all(PdfSource(kind="pdf", uri=str(tmp_path)), val_share=0, documents_per_unit=5)["train"]
    assert [o.data for o in offered] == [data for _, data in members]
    assert offered[0].id == f"one/good/{paths[0].stem}" and offered[0].origin == "one.tar#1024"
    alone = read_all(PdfSource(kind="pdf", uri=str(tmp_path / "two.tar")), val_share=0)["train"]
    assert [o.id for o in alone] == [f"good/{path.stem}" for path in paths[7:]]
    [one] = read_all(PdfSource(kind="pdf", uri=str(paths[0])), val_share=0)["train"]
    assert (one.id, one.data) == (paths[0].stem, members[0][1])


def test_names_of_members_are_never_paths(tmp_path: Path) -> None:
    names = [
        "../../evil.pdf",
        "/etc/evil.pdf",
        "a\nb.pdf",
        "./c.pdf",
        "d" * 300 + ".pdf",
        b"\xff.pdf".decode("utf-8", "surrogateescape"),
    ]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"%PDF"))
        link = tarfile.TarInfo("link.pdf")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    offered = read_all(PdfSource(kind="pdf", uri=str(tmp_path / "x.tar")), val_share=0)["train"]
    assert [o.data for o in offered] == [b"%PDF"] * 6 + [b""] and len({o.key for o in offered}) == 7
    assert [(o.id, o.reason) for o in offered if o.reason] == [("link", Reason.NOT_A_FILE)]
    for o in offered:
        assert not set("./\n") & set(o.key) and len(o.key) < 64
        o.id.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_a_damaged_tar_is_refused_by_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{i}.pdf", b"%PDF" * 1000) for i in range(3)])
    data = bytearray(path.read_bytes())
    second = 512 + 4096
    data[second + 148] ^= 1  # the second header's checksum
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.tar: a damaged tar"):
        listed_ids(PdfSource(kind="pdf", uri=str(path)))
    path.write_bytes(data[: second - 1000])
    with pytest.raises(ValueError, match=r"x\.tar: a damaged tar"):
        listed_ids(PdfSource(kind="pdf", uri=str(path)))


def test_reading_together_is_reading_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READ_AHEAD", 4000)
    monkeypatch.setattr(reading, "GAP", 700)
    path = write_tar(tmp_path / "x.tar", [(f"{i}.pdf", bytes([i]) * (i * 331 % 5000)) for i in range(60)])
    source = PdfSource(kind="pdf", uri=str(path))
    made = read_all(source, val_share=0.3, documents_per_unit=7)
    for o in made["train"] + made["val"]:
        assert o.data == bytes([int(o.id)]) * (int(o.id) * 331 % 5000)
    assert len(made["train"]) + len(made["val"]) == 60 and len(made["val"]) > 5


def test_uris_become_absolute_for_workers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "x"}\n')
    source = TextSource(kind="text", uri="a.jsonl").prepare("inputs")
    [(_, unit)] = cut(Render(sources=[source]), [source])
    assert [file.uri for file in unit.files] == [str(tmp_path / "a.jsonl")]


@pytest.mark.slow
def test_docstrings_as_markdown_have_headings_and_lists_of_the_same_words(tmp_path: Path) -> None:
    kinds = {"passages": 8, "min_words": 8, "max_words": 12, "vocabulary": 50}
    plain, structured = (docstrings.passages(DocstringSource(**kinds, markdown=way)) for way in (False, True))
    assert [text.startswith("# ") for text in structured] == [False, True] * 4
    assert ["\n- " in text for text in structured] == [False, False, True, True] * 2
    assert [re.sub(r"[#-] ?", "", text).split() for text in structured] == [text.split() for text in plain]
    assert DocstringSource(**kinds, markdown=True).prepare(str(tmp_path)).text_format == "markdown"
