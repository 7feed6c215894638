"""arXiv's bulk bucket: its manifest, the selection of tars, their units, and the papers of a unit.

Planning reads the manifest and lists the folder of the tars; no tar is opened before the unit that needs it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data_specs import cache, storage
from data_specs.records import FileInfo, Reason, SourceUnit, TarRange
from data_specs.spec import ArxivSource, Limits, month_number, selects
from pipeline.sources.document import Offered
from pipeline.sources.licences import Paper, licence_name, paper_id, papers_of, write_months
from pipeline.sources.tars import Damaged, Member, members
from pipeline.splits import split_of

MANIFEST = "pdf/arXiv_pdf_manifest.xml"
ENTRY_BYTES = 1 << 20
_FILE = r"[\w-]+(?:[/.][\w-]+)*\.tar"  # no .. and no / before it
log = logging.getLogger(__name__)


class Tar(NamedTuple):
    """An entry of the manifest."""

    filename: str
    md5: str
    yymm: str
    seq_num: int
    num_items: int


def prepare_arxiv(source: ArxivSource, inputs_uri: str) -> ArxivSource:
    """The source with its metadata cut into months. Raises ValueError for a choice by licence without metadata."""
    if source.metadata is None:
        if source.licences is not None:
            raise ValueError(
                f"{source.uri}: licences are known from a metadata snapshot alone: give metadata: FILE.jsonl, "
                "or licences: null to take every paper whatever its licence"
            )
        return source
    months = write_months(
        storage.absolute(source.metadata),
        inputs_uri,
        lambda month: selects(source.months, month),
        source.months or "all",
    )
    return source.model_copy(update={"metadata": months})


# ---- manifest ------------------------------------------------------------------------------------------------------
def read_manifest(stream: BinaryIO) -> tuple[list[Tar], list[str]]:
    """(entries in the order of months and numbers, what is wrong with those that were left out)."""
    tars, faults = dict[str, Tar](), list[str]()
    for number, entry in enumerate(_entries(stream), 1):
        try:
            tar = _entry(entry)
            if tar.filename in tars:
                raise ValueError(f"{tar.filename} comes twice")
            tars[tar.filename] = tar
        except (ValueError, ParseError, DefusedXmlException) as error:
            faults.append(f"entry {number}: {error}")
    return sorted(tars.values(), key=lambda tar: (month_number(tar.yymm), tar.seq_num, tar.filename)), faults


def _entries(stream: BinaryIO) -> Iterator[bytes]:
    """What stands between each <file> and its end, so that a broken entry harms no other."""
    rest, number = b"", 0
    for block in iter(lambda: stream.read(1 << 16), b""):
        *found, rest = (rest + block).split(b"<file>")
        for entry in found:
            if number:
                yield entry
            number += 1
        if len(rest) > ENTRY_BYTES:
            raise ValueError("not an arXiv manifest: no <file> entries of ordinary size")
    if number:
        yield rest


def _entry(text: bytes) -> Tar:
    body, end, _ = text.partition(b"</file>")
    if not end:
        raise ValueError("no </file>")
    fields = {child.tag: (child.text or "").strip() for child in fromstring(b"<file>" + body + b"</file>")}
    keys = ("filename", "md5sum", "yymm", "seq_num", "num_items")
    values = [fields.get(key, "") for key in keys]
    forms = (_FILE, r"[0-9a-f]{32}", r"\d\d(0[1-9]|1[0-2])", r"\d{1,9}", r"[1-9]\d{0,8}")
    for key, value, form in zip(keys, values, forms):
        if not re.fullmatch(form, value, re.ASCII):
            raise ValueError(f"{key} is {value[:80]!r}")
    return Tar(values[0], values[1], values[2], int(values[3]), int(values[4]))


# ---- plan ----------------------------------------------------------------------------------------------------------
def cut_tars(source: ArxivSource, documents_per_unit: int, val_share: float) -> Iterator[tuple[str, SourceUnit]]:
    """(split, unit, not numbered yet): `count` papers of a tar from the `first`; the last unit takes all that follow.

    Split by a hash of tar and first. `affinity` names the tar: units of one tar do well to run on one node.
    """
    months = _months(source)
    for tar, file, num_papers in _chosen(source):
        papers = months.get(tar.yymm)
        for first in range(0, num_papers, documents_per_unit):
            count = min(documents_per_unit, num_papers - first)
            tar_range = TarRange(md5=tar.md5, first=first, count=count, last=first + count == tar.num_items)
            files = (file, papers) if papers else (file,)
            unit = SourceUnit(unit=0, affinity=file.uri, source=source, files=files, tar=tar_range)
            yield split_of(f"{tar.filename}:{first}", val_share), unit


def _chosen(source: ArxivSource) -> Iterator[tuple[Tar, FileInfo, int]]:
    """The selected tars, what the listing says of them, and the number of papers wanted: all, up to max_documents."""
    tars, left = _selected(source), source.max_documents
    there = {
        file.uri: file for folder in sorted({_folder(source, t) for t in tars}) for file in storage.list_files(folder)
    }
    missing = [tar.filename for tar in tars if _uri(source, tar) not in there]
    if missing:
        raise ValueError(
            f"{source.uri}: {missing[0]}"
            + (f" and {len(missing) - 1} more tars" if missing[1:] else "")
            + " of the manifest are not there; bring them, or leave them out by `months` or `max_tars`"
        )
    for tar in tars:
        wanted = tar.num_items if left is None else min(left, tar.num_items)
        if wanted:
            yield tar, there[_uri(source, tar)], wanted
        left = None if left is None else left - wanted


def _selected(source: ArxivSource) -> list[Tar]:
    uri = storage.join(source.uri, MANIFEST)
    try:
        with storage.open_stream(uri) as stream:
            tars, faults = read_manifest(stream)
    except FileNotFoundError:
        raise ValueError(
            f"{uri}: there is no manifest; give the uri of a bucket or folder laid out like s3://arxiv"
        ) from None
    if faults:
        log.warning("%s: %d malformed entries are left out (%s)", uri, len(faults), "; ".join(faults[:3]))
    chosen = [tar for tar in tars if selects(source.months, tar.yymm)][: source.max_tars]
    if not sum(tar.num_items for tar in chosen):
        span = f"; it has {tars[0].yymm} to {tars[-1].yymm}" if tars else "; it names none"
        raise ValueError(f"{uri}: no paper of the months {source.months or '(all)'} is in it{span}")
    return chosen


def _uri(source: ArxivSource, tar: Tar) -> str:
    return storage.join(source.uri, tar.filename)


def _folder(source: ArxivSource, tar: Tar) -> str:
    return _uri(source, tar).rpartition("/")[0]


def _months(source: ArxivSource) -> dict[str, FileInfo]:
    """The metadata of each month, as `prepare_arxiv` left it."""
    files = storage.list_files(source.metadata) if source.metadata else ()
    return {file.uri.rpartition("/")[2].removesuffix(".jsonl"): file for file in files}


# ---- unit ----------------------------------------------------------------------------------------------------------
def read_papers(unit: SourceUnit, limits: Limits) -> Iterator[Offered]:
    """A unit's papers in the order of the tar. What the manifest promises and the tar lacks is rejected one by one.

    Raises ValueError, before the first, if the tar is not the one that the manifest names.
    """
    assert isinstance(unit.source, ArxivSource) and unit.tar
    tar, *months = unit.files
    path = storage.local_copy(tar.uri)
    if (found := _md5(tar, path)) != unit.tar.md5:
        raise ValueError(
            f"{tar.uri}: its md5 is {found}, in the manifest {unit.tar.md5}: damaged, or replaced; fetch both anew"
        )
    with path.open("rb") as file:  # stays open: the cache may drop it
        slots, fault = _slots(file, unit.tar)
        names = {member: _identifier(member) for member in slots}
        papers = papers_of(months[0].uri, set(names.values())) if months else {}
        for member, identifier in names.items():
            yield _paper(unit.source, tar, member, identifier, papers.get(identifier), file, limits)
    for number in range(unit.tar.first + len(slots), unit.tar.first + unit.tar.count):
        name = f"{tar.uri.rpartition('/')[2]}#{number}"
        yield Offered(name, f"missing-{number}", name, reason=Reason.TAR_ENDS_EARLY, detail=fault)


def _identifier(member: Member) -> str:
    name = member.name.rpartition("/")[2].removesuffix(".pdf")
    return paper_id(name.encode("utf-8", "replace").decode())


def _slots(file: BinaryIO, part: TarRange) -> tuple[list[Member], str]:
    """(the unit's members, what is wrong with the tar)."""
    stop = None if part.last else part.first + part.count
    slots = list[Member]()
    try:
        for member in islice(members(file), part.first, stop):
            slots.append(member)
    except Damaged as error:
        return slots, f"damaged ({error})"
    return slots, ""


def _paper(
    source: ArxivSource,
    tar: FileInfo,
    member: Member,
    identifier: str,
    paper: Paper | None,
    file: BinaryIO,
    limits: Limits,
) -> Offered:
    origin = f"{tar.uri.rpartition('/')[2]}#{member.start}"
    offered = Offered(identifier, "", origin, about=_about(identifier, paper))
    if reason := _filtered(source, paper):
        return offered._replace(reason=reason)
    if member.start is None:
        return offered._replace(reason=Reason.NOT_A_FILE)
    if member.size > limits.document_bytes:
        return offered._replace(reason=Reason.TOO_LARGE, detail=f"document_bytes: {member.size}")
    file.seek(member.start)
    return offered._replace(data=file.read(member.size))


def _about(identifier: str, paper: Paper | None) -> dict[str, Any]:
    """What CC BY asks to be named, and where the paper is."""
    about = {"url": f"https://arxiv.org/abs/{identifier}"}
    return about | {key: paper[key] for key in ("licence", "title", "authors", "categories")} if paper else about


def _filtered(source: ArxivSource, paper: Paper | None) -> Reason | None:
    """Why a paper is not wanted, or None."""
    if paper is None:
        return Reason.NO_METADATA if source.licences is not None or source.categories else None
    if source.licences is not None and paper["licence"] not in map(licence_name, source.licences):
        return Reason.LICENCE
    if source.categories and not set(source.categories) & set(paper["categories"].split()):
        return Reason.CATEGORY
    return None


def _md5(file: FileInfo, path: Path) -> str:
    """The md5 of a tar, reckoned once on each node."""

    def fill(note: Path) -> None:
        with path.open("rb") as tar:
            note.write_text(hashlib.file_digest(tar, lambda: hashlib.md5(usedforsecurity=False)).hexdigest())

    return cache.local_copy(f"md5 {file.uri} {file.etag}", f"{path.name}.md5", 32, fill).read_text()
