"""arXiv's bulk layout: manifest, selections, licences, and `dnd render` of the miniature from a folder and over S3."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import dnd
from s3_server import FaultProxy, Server

from data_specs import s3_client, storage
from data_specs.reader import open_shards
from data_specs.records import RawDocument, Reason, Receipt, SourceUnit
from data_specs.sections import Limits, Render
from data_specs.source import key_of
from data_specs.sources import ArxivSource
from data_specs.sources.arxiv import MANIFEST, month_number, read_manifest, selects
from data_specs.sources.licences import licence_name, month_of, paper_id, papers_of, write_months
from data_specs.sources.planning import cut, list_units, listing_digest
from data_specs.sources.reading import read_unit
from data_specs.spec import load_spec

TINY = Path(__file__).parent.parent / "tiny.yaml"
LIMITS = Limits()
BY, BY_SA, CC0 = (
    f"creativecommons.org/{path}" for path in ("licenses/by/4.0", "licenses/by-sa/4.0", "publicdomain/zero/1.0")
)
OWN = "http://arxiv.org/licenses/nonexclusive-distrib/1.0/"
PAPERS = [  # as the metadata snapshot names them; quant-ph/0703044 and 2401.00011 are not in it
    ("astro-ph/0703001", f"http://{BY}/", "astro-ph"),
    ("cs/0703004", f"https://{BY_SA}", "cs.CR cs.DC"),
    ("hep-ph/0703007", f"http://{CC0}/", "hep-ph"),
    ("hep-th/0703012", OWN, "hep-th math.NT"),
    ("math/0703021", None, "math.CO"),
    ("2401.00001", f"https://{BY}", "cs.MS cs.DS"),
    ("2401.00002", "http://creativecommons.org/licenses/by-nc-nd/4.0/", "econ.EM"),
    ("2401.00004", f"http://{BY}/", "math.NA"),
    ("2401.00005", f"http://{BY}/", "cs.DC"),
    ("2401.00007", f"http://{CC0}", "cs.AI"),
    ("1912.00001", f"http://{BY}/", "cs.AI"),
]
ALLOWED = {"astro-ph/0703001", "cs/0703004", "hep-ph/0703007", "2401.00001", "2401.00004", "2401.00005", "2401.00007"}


@pytest.fixture(scope="module")
def bulk(shared: Path) -> Path:
    return shared / "data/arxiv_bulk"


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A metadata snapshot of the miniature, with a broken line and one that is no paper."""
    path = tmp_path_factory.mktemp("metadata") / "snapshot.json"
    lines = [
        {
            "id": i,
            "license": licence,
            "categories": c,
            "title": f"On\n  {i}",
            "authors": "A. Author, B. Author",
            "abstract": "…",
        }
        for i, licence, c in PAPERS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{broken\n{"id": "no paper"}\n')
    return path


def units_of(source: ArxivSource, inputs: Path, **render: Any) -> list[tuple[str, SourceUnit]]:
    prepared = source.prepare(str(inputs))
    return list(cut(Render(sources=[source], **render), [prepared]))


def offered(source: ArxivSource, inputs: Path, **render: Any) -> list[RawDocument]:
    return [o for _, unit in units_of(source, inputs, **render) for o in read_unit(unit, LIMITS.document_bytes)]


# ---- identifiers, months, licences ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "identifier", "month"),
    [
        ("hep-th0703012", "hep-th/0703012", "0703"),
        ("hep-th/9108001v2", "hep-th/9108001", "9108"),
        ("math.GT0309136", "math.GT/0309136", "0309"),
        ("0704.0001", "0704.0001", "0704"),
        ("2401.00001v3", "2401.00001", "2401"),
        ("notes", "notes", None),
    ],
)
def test_identifiers_old_and_new(name: str, identifier: str, month: str | None) -> None:
    assert paper_id(name) == identifier and month_of(identifier) == month


def test_months_run_past_the_century() -> None:
    months = ["9108", "9912", "0001", "0703", "2401"]
    assert sorted(months, key=month_number) == months
    assert [m for m in months if selects("9911-0102", m)] == ["9912", "0001"]
    assert [m for m in months if selects("0703, 9108", m)] == ["9108", "0703"]
    assert all(selects(None, m) for m in months)
    assert ArxivSource(kind="arxiv", months=2401).months == "2401"  # type: ignore[arg-type]
    for wrong, message in [("0102-9911", "ends before it begins"), ("2413", "no month"), (451, "quotes")]:
        with pytest.raises(ValueError, match=message):
            ArxivSource(kind="arxiv", months=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"categories .* give metadata"):
        ArxivSource(kind="arxiv", categories=["cs.AI"])


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("http://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0", "CC-BY-4.0"),
        ("https://www.creativecommons.org/licenses/BY-NC-SA/3.0/us/", "CC-BY-NC-SA-3.0-US"),
        ("https://creativecommons.org/licenses/by/2.5/legalcode", "CC-BY-2.5"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("http://creativecommons.org/licenses/publicdomain/", "CC-PDDC"),
        ("http://arxiv.org/licenses/nonexclusive-distrib/1.0/", "arXiv-nonexclusive-distrib-1.0"),
        ("http://arxiv.org/licenses/assumed-1991-2003/", "arXiv-assumed-1991-2003"),
        ("CC-BY-4.0", "CC-BY-4.0"),
        ("https://example.org/mine", "https://example.org/mine"),
        (None, "none"),
    ],
)
def test_licences_by_their_spdx_names(address: str | None, name: str) -> None:
    assert licence_name(address) == name and licence_name(name) == name


def test_metadata_is_cut_into_the_selected_months(metadata: Path, tmp_path: Path) -> None:
    folder = Path(write_months(str(metadata), str(tmp_path), lambda month: selects("0701-2401", month), "0701-2401"))
    assert sorted(p.name for p in folder.iterdir()) == ["0703.jsonl", "1912.jsonl", "2401.jsonl"]
    assert json.loads(Path(f"{folder}.json").read_text())["broken_lines"] == 2
    found = papers_of(str(folder / "0703.jsonl"), {"cs/0703004", "no such"})
    assert {name: paper.model_dump() for name, paper in found.items()} == {"cs/0703004": {
        "id": "cs/0703004", "licence": "CC-BY-SA-4.0", "title": "On cs/0703004", "authors": "A. Author, B. Author",
        "categories": "cs.CR cs.DC",
    }}  # fmt: skip
    (tmp_path / "other.jsonl").write_text('{"id": "no paper"}\n')
    with pytest.raises(ValueError, match="no line has an arXiv id"):
        write_months(str(tmp_path / "other.jsonl"), str(tmp_path), lambda _: True, "all")


SCALE = """
import json, sys
from data_specs.sources.licences import write_months
write_months(sys.argv[1], sys.argv[2], lambda month: True, "all")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_the_metadata_is_never_held_in_memory(tmp_path: Path) -> None:
    peaks = []
    for number in (10, 20_000):
        path = tmp_path / f"{number}.jsonl"
        with path.open("w") as file:
            for i in range(number):
                paper = {
                    "id": f"2{i % 4}{i % 12 + 1:02d}.{i:05d}",
                    "license": f"http://{BY}/",
                    "title": "t" * 200,
                    "abstract": "a" * 800,
                }
                file.write(json.dumps(paper) + "\n")
        command = [sys.executable, "-c", SCALE, str(path), str(tmp_path / f"{number}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 8_000, peaks  # KiB; the larger snapshot has 22 MB


# ---- manifest ------------------------------------------------------------------------------------------------------
def entry(**fields: Any) -> str:
    values = {
        "filename": "pdf/arXiv_pdf_9912_001.tar",
        "md5sum": "0" * 32,
        "yymm": "9912",
        "seq_num": 1,
        "num_items": 3,
    }
    return "<file>" + "".join(f"<{k}>{v}</{k}>" for k, v in (values | fields).items() if v is not None) + "</file>"


def manifest(*entries: str) -> io.BytesIO:
    body = f"<arXivPDF>{''.join(entries)}<timestamp>x</timestamp></arXivPDF>"
    return io.BytesIO(f"<?xml version='1.0' standalone='yes'?>\n{body}".encode())


def test_a_malformed_entry_harms_no_other() -> None:
    good = [
        entry(filename=f"pdf/{yymm}_{n}.tar", yymm=yymm, seq_num=n)
        for yymm in ("0001", "9108", "9912")
        for n in (2, 1, 10)
    ]
    bad = {
        entry(md5sum=None): "md5sum is ''",
        entry(num_items="many"): "num_items is 'many'",
        entry(num_items="1_000"): "num_items is '1_000'",
        entry(seq_num="+3"): "seq_num is '+3'",
        entry(yymm="9913"): "yymm",
        entry(filename="../../etc/passwd.tar"): "filename",
        entry(filename="s3://other/x.tar"): "filename",
        entry(filename="a & b.tar"): "not well-formed",
        "<file><filename>cut": "no </file>",
        good[0]: "comes twice",
    }
    tars, faults = read_manifest(manifest(*good, *bad, entry()))
    numbers = {"9108": [1, 2, 10], "9912": [1, 1, 2, 10], "0001": [1, 2, 10]}
    assert [(t.yymm, t.seq_num) for t in tars] == [(yymm, n) for yymm, of_month in numbers.items() for n in of_month]
    assert len(faults) == len(bad) and all(reason in fault for reason, fault in zip(bad.values(), faults))


def test_no_entity_of_a_manifest_is_ever_expanded(tmp_path: Path) -> None:
    bomb = "<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'><!ENTITY c SYSTEM 'file:///etc/passwd'>]>"
    text = f"<?xml version='1.0'?>{bomb}<arXivPDF>{entry(md5sum='&b;')}{entry(md5sum='&c;')}{entry()}</arXivPDF>"
    tars, faults = read_manifest(io.BytesIO(text.encode()))
    assert len(tars) == 1 and len(faults) == 2 and "passwd" not in str(faults)
    with pytest.raises(ValueError, match="not an arXiv manifest"):
        read_manifest(io.BytesIO(b"<file>" + bytes(3 << 20)))


def test_malformed_entries_are_warned_of(bulk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(bulk, tmp_path / "bulk", copy_function=shutil.copyfile)
    path = tmp_path / "bulk" / MANIFEST
    path.chmod(0o644)
    path.parent.chmod(0o755)
    path.write_text(path.read_text().replace("<num_items>6</num_items>", "<num_items>six</num_items>", 1))
    source = ArxivSource(kind="arxiv", uri=str(tmp_path / "bulk"), licences=None)
    with caplog.at_level(logging.WARNING):
        assert [o.id[:4] for o in offered(source, tmp_path)] == ["2401"] * 6
    assert "1 malformed entries are left out (entry 1: num_items is 'six')" in caplog.text


# ---- selection and units -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("selection", "number"),
    [
        ({}, 12), ({"months": "0703"}, 6), ({"months": "0612-0704,2401"}, 12), ({"max_tars": 1}, 6),
        ({"max_documents": 8}, 8), ({"max_documents": 6}, 6), ({"months": "2401", "max_documents": 1}, 1),
    ],
)  # fmt: skip
def test_selection_by_month_and_count(selection: dict[str, Any], number: int, bulk: Path, tmp_path: Path) -> None:
    source = ArxivSource(kind="arxiv", uri=str(bulk), licences=None, **selection)
    found = offered(source, tmp_path, documents_per_unit=4)
    assert len(found) == len({o.id for o in found}) == number and not any(o.reason for o in found)
    assert found[0].id == ("2401.00001" if selection.get("months") == "2401" else "astro-ph/0703001")


def test_selection_by_category_and_licence_is_counted(bulk: Path, metadata: Path, tmp_path: Path) -> None:
    source = ArxivSource(kind="arxiv", uri=str(bulk), metadata=str(metadata))
    found = offered(source, tmp_path)
    assert {o.id for o in found if o.data} == ALLOWED and len(found) == 12
    dropped = {o.id: (o.reason.kind, o.reason, o.detail) for o in found if o.reason}
    assert dropped == {
        "hep-th/0703012": ("filtered", Reason.LICENCE, "arXiv-nonexclusive-distrib-1.0"),
        "math/0703021": ("filtered", Reason.LICENCE, "none"),
        "quant-ph/0703044": ("filtered", Reason.NO_METADATA, ""),
        "2401.00002": ("filtered", Reason.LICENCE, "CC-BY-NC-ND-4.0"),
        "2401.00011": ("filtered", Reason.NO_METADATA, ""),
    }
    chosen = source.model_copy(update={"categories": ["cs.DC", "hep-th"], "licences": None})
    assert {o.id for o in offered(chosen, tmp_path) if o.data} == {"cs/0703004", "hep-th/0703012", "2401.00005"}
    by_address = source.model_copy(update={"licences": [f"https://{CC0}/"]})
    assert {o.id for o in offered(by_address, tmp_path) if o.data} == {"hep-ph/0703007", "2401.00007"}


def test_what_cannot_be_planned_is_one_line(bulk: Path, tmp_path: Path) -> None:
    source = ArxivSource(kind="arxiv", uri=str(bulk))
    with pytest.raises(ValueError, match=r"give metadata: FILE\.jsonl, or licences: null"):
        source.prepare(str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no metadata snapshot"):
        source.model_copy(update={"metadata": "/no/such"}).prepare(str(tmp_path))
    free = source.model_copy(update={"licences": None})
    with pytest.raises(ValueError, match=r"no paper of the months 1001 is in it; it has 0703 to 2401"):
        units_of(free.model_copy(update={"months": "1001"}), tmp_path)
    with pytest.raises(ValueError, match="there is no manifest"):
        units_of(free.model_copy(update={"uri": str(tmp_path)}), tmp_path)
    (tmp_path / "pdf").mkdir()
    shutil.copy(bulk / MANIFEST, tmp_path / MANIFEST)
    with pytest.raises(ValueError, match=r"arXiv_pdf_0703_001\.tar and 1 more tars of the manifest are not there"):
        units_of(free.model_copy(update={"uri": str(tmp_path)}), tmp_path)


def test_units_say_which_tar_they_need_and_split_by_tar_and_first(bulk: Path, tmp_path: Path) -> None:
    source = ArxivSource(kind="arxiv", uri=str(bulk), licences=None)
    units = units_of(source, tmp_path, documents_per_unit=2, val_share=0.4)
    assert [str(u.affinity)[-12:] for _, u in units] == ["0703_001.tar"] * 3 + ["2401_001.tar"] * 3
    assert {split for split, _ in units} == {"train", "val"}
    ids = {
        split: {o.id for s, u in units if s == split for o in read_unit(u, LIMITS.document_bytes)}
        for split in ("train", "val")
    }
    assert not ids["train"] & ids["val"] and len(ids["train"] | ids["val"]) == 12


# ---- tars that are not as they should be ---------------------------------------------------------------------------
def made_bulk(
    folder: Path, num_items: int, members: list[tarfile.TarInfo | str], cut: int | None = None
) -> ArxivSource:
    """A bulk folder of one tar with these members, cut off after `cut` bytes; its md5 is right."""
    (folder / "pdf").mkdir(parents=True)
    path = folder / "pdf/arXiv_pdf_9912_001.tar"
    with tarfile.open(path, "w") as tar:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = 4 if info.isreg() else 0
            tar.addfile(info, io.BytesIO(b"%PDF"))
    path.write_bytes(path.read_bytes()[:cut])
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    (folder / MANIFEST).write_bytes(manifest(entry(md5sum=md5, num_items=num_items)).read())
    return ArxivSource(kind="arxiv", uri=str(folder), licences=None)


def folder_entry(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def test_which_paper_is_taken_for_validation_does_not_depend_on_where_the_tars_lie(bulk: Path, tmp_path: Path) -> None:
    digests = set()
    for name in "abc":
        shutil.copytree(bulk, tmp_path / name, copy_function=shutil.copyfile)
        source = ArxivSource(uri=str(tmp_path / name), licences=None)
        folder = tmp_path / f"units-{name}"
        folder.mkdir()
        render = Render(sources=[source], val_share=1e-9, documents_per_unit=1)
        digests.add(tuple(map(listing_digest, list_units(render, [source], folder).values())))
    assert len(digests) == 1


def test_more_or_fewer_members_than_promised_are_accounted_for(tmp_path: Path) -> None:
    names = [folder_entry("9912"), *(f"9912/hep-th9912{i:03d}.pdf" for i in range(1, 6))]
    more = offered(made_bulk(tmp_path / "more", 3, names), tmp_path, documents_per_unit=2)
    assert [o.id for o in more] == [f"hep-th/9912{i:03d}" for i in range(1, 6)] and all(o.data for o in more)
    fewer = offered(made_bulk(tmp_path / "fewer", 9, names), tmp_path, documents_per_unit=2)
    assert [bool(o.data) for o in fewer] == [True] * 5 + [False] * 4
    assert {o.reason for o in fewer[5:]} == {Reason.TAR_ENDS_EARLY} and len({o.key for o in fewer}) == 9


def test_a_tar_published_damaged_gives_what_can_be_read(tmp_path: Path) -> None:
    names = [f"9912/hep-th9912{i:03d}.pdf" for i in range(1, 6)]
    found = offered(made_bulk(tmp_path, 5, list(names), cut=1024 * 3 + 100), tmp_path)
    assert [o.id for o in found[:3]] == ["hep-th/9912001", "hep-th/9912002", "hep-th/9912003"]
    assert len(found) == 5 and "damaged" in found[4].detail


def test_members_of_odd_kinds_and_names(tmp_path: Path) -> None:
    link = tarfile.TarInfo("9912/hep-th9912001.pdf")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    odd = ["../../../etc/cron.d/evil.pdf", "9912/a\nb.pdf", "9912/hep-th9912002.pdf", "9912/hep-th9912002.pdf"]
    found = offered(made_bulk(tmp_path, 5, [link, *odd]), tmp_path)
    assert found[0].reason == Reason.NOT_A_FILE and [o.data for o in found[1:]] == [b"%PDF"] * 4
    assert len({o.key for o in found}) == 5 and not any(set("./\n") & set(o.key) for o in found)
    assert [o.id for o in found[3:]] == ["hep-th/9912002"] * 2


def test_a_tar_that_is_not_the_manifests_fails_its_units(tmp_path: Path) -> None:
    source = made_bulk(tmp_path, 1, ["9912/hep-th9912001.pdf"])
    path = tmp_path / "pdf/arXiv_pdf_9912_001.tar"
    [(_, planned)] = units_of(source, tmp_path)
    data = bytearray(path.read_bytes())
    data[512] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not the file that was planned"):
        list(read_unit(planned, LIMITS.document_bytes))
    [(_, anew)] = units_of(source, tmp_path)
    with pytest.raises(ValueError, match=r"its md5 is [0-9a-f]{32}, in the manifest"):
        list(read_unit(anew, LIMITS.document_bytes))


# ---- the whole way -------------------------------------------------------------------------------------------------
def spec_file(folder: Path, source: dict[str, Any]) -> Path:
    """The tiny spec over one arXiv source, at one picture a page."""
    text = yaml.safe_load(TINY.read_text())
    text["base"] = "demo"
    text["render"] |= {"sources": [{"kind": "arxiv"} | source], "documents_per_unit": 2, "val_share": 0.4}
    text["render"]["pages"] = {"dpi": 36, "crops": 1, "max_pages": 2, "min_words": 0}
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(text))
    load_spec(path)
    return path


def check_root(root: Path) -> None:
    """Every paper of the miniature stands in the receipts and samples of a root."""
    receipts = [Receipt.parse(p.read_bytes(), p.name) for p in sorted(root.glob("images/*/[0-9]*.json"))]
    assert len(receipts) == 6
    filtered = sum((Counter(receipt.filtered) for receipt in receipts), Counter[Reason]())
    assert (filtered[Reason.LICENCE], filtered[Reason.NO_METADATA]) == (3, 2)
    about = [item["json"] for split in ("train", "val") for item in open_shards(str(root / "images" / split))]
    rejected = [reject.key for receipt in receipts for reject in receipt.rejected]
    assert {a["id"] for a in about} == ALLOWED - {"hep-ph/0703007", "2401.00005"}, "the two that are bad PDFs"
    assert sorted(rejected) == ["2401-00005", key_of("hep-ph/0703007")]
    read = [receipt.read[0] for receipt in receipts]
    assert len(receipts) == len({one.sha256 for one in read if one.bytes}) + sum(not one.bytes for one in read)
    [by] = {
        (a["licence"], a["title"], a["authors"], a["url"], a["categories"]) for a in about if a["id"] == "cs/0703004"
    }
    assert by == (
        "CC-BY-SA-4.0",
        "On cs/0703004",
        "A. Author, B. Author",
        "https://arxiv.org/abs/cs/0703004",
        "cs.CR cs.DC",
    )


def test_dnd_render_of_the_miniature_in_a_folder(bulk: Path, metadata: Path, tmp_path: Path) -> None:
    spec = spec_file(tmp_path, {"uri": str(bulk), "metadata": str(metadata)})
    done = dnd("render", spec, "--root", tmp_path / "root", "--workers", 0)
    assert done.returncode == 0, done.stderr[-2000:]
    check_root(tmp_path / "root")


@pytest.fixture
def paying_bucket(bulk: Path, ceph: Server, use_s3: Callable[..., None]) -> Iterator[str]:
    """s3://arxiv on the gateway, filled by its owner; whoever reads it must say that he pays. The other user is on."""
    use_s3(ceph)
    client = s3_client.client()
    client.create_bucket(Bucket="arxiv")
    for path in bulk.rglob("*.*"):
        storage.write(f"s3://arxiv/{path.relative_to(bulk)}", path)
        client.put_object_acl(Bucket="arxiv", Key=str(path.relative_to(bulk)), ACL="public-read")
    client.put_bucket_acl(Bucket="arxiv", ACL="public-read")
    client.put_bucket_request_payment(Bucket="arxiv", RequestPaymentConfiguration={"Payer": "Requester"})
    use_s3(ceph, ceph.other)
    yield "s3://arxiv"
    use_s3(ceph)
    for file in list(storage.list_files("s3://arxiv")):
        storage.delete(file.uri)
    client.delete_bucket(Bucket="arxiv")


@pytest.mark.s3
def test_dnd_render_of_the_paying_bucket_fetches_each_tar_once(
    paying_bucket: str, ceph: Server, metadata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(s3_client, "pays", lambda bucket: False)
        with pytest.raises(PermissionError, match="DND_REQUESTER_PAYS"):
            storage.read_bytes(f"{paying_bucket}/{MANIFEST}")
    spec = spec_file(tmp_path, {"metadata": str(metadata)})  # the bucket is the default
    with FaultProxy(ceph.endpoint, 0.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        done = dnd("render", spec, "--root", tmp_path / "root", "--workers", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    check_root(tmp_path / "root")
    fetched = {
        name: n for name, n in proxy.requests.items() if name.startswith("GET /arxiv/pdf/") and name.endswith(".tar")
    }
    assert fetched == {f"GET /arxiv/pdf/arXiv_pdf_{yymm}_001.tar": 1 for yymm in ("0703", "2401")}, proxy.requests


def test_units_at_once_share_one_fetch(
    bulk: Path, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in bulk.rglob("*.*"):
        storage.write(f"{s3_root}/{path.relative_to(bulk)}", path)
    source = ArxivSource(kind="arxiv", uri=s3_root, licences=None)
    units = [unit for _, unit in units_of(source, tmp_path, documents_per_unit=1)]
    with FaultProxy(s3_client.client().meta.endpoint_url, 0.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda unit: [o.id for o in read_unit(unit, LIMITS.document_bytes)], units))
    assert len({i for [i] in found}) == 12
    assert [n for name, n in proxy.requests.items() if name.startswith("GET ") and name.endswith(".tar")] == [1, 1]
