"""arXiv's bulk bucket: its manifest, the selection of tars, their units, and the papers of a unit.

Planning reads the manifest and lists the folder of the tars; no tar is opened before the unit that needs it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from data_specs import cache, storage
from data_specs.records import FileInfo, Md5, RawDocument, Reason, SourceUnit, TarRange
from data_specs.source import Source, split_of
from data_specs.sources.licences import Paper, licence_name, paper_id, papers_of, write_months
from data_specs.sources.listed import too_large
from data_specs.sources.tars import DamagedTarError, Member, members

# What may be shared on: the default allow list for documents that carry a licence.
OPEN_LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "CC-BY-2.5", "CC-BY-SA-4.0", "CC-BY-SA-3.0")
MANIFEST = "pdf/arXiv_pdf_manifest.xml"
ENTRY_BYTES = 1 << 20
MORE_MEMBERS = 10_000  # that a tar may hold beyond its manifest's number
log = logging.getLogger(__name__)


class ArxivSource(Source):
    """arXiv's bulk bucket (requester pays): tars named by pdf/arXiv_pdf_manifest.xml."""

    document_kind: ClassVar[Literal["pdf"]] = "pdf"
    places: ClassVar[tuple[str, ...]] = ("uri", "metadata")

    kind: Literal["arxiv"] = Field("arxiv", description="what sort of source it is")
    uri: str = Field("s3://arxiv", description="the bucket, or a folder laid out like it")
    months: str | None = Field(None, description="YYMM, a list `0703,2401`, a range `9911-0102`, or a list of both")
    categories: list[str] | None = Field(None, description="keep papers of these categories (needs metadata)")
    metadata: str | None = Field(None, description="metadata snapshot, JSON Lines with id and license, or packed")
    licences: list[str] | None = Field(
        list(OPEN_LICENCES), description="allowed ones (needs metadata); null: all papers"
    )
    max_tars: int | None = Field(None, ge=1, description="the first of the selected, in the order of months")
    max_documents: int | None = Field(None, ge=1, description="the first so many of the selected tars")

    @field_validator("months", mode="before")
    @classmethod
    def _months_are_text(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1000:
                raise ValueError("put it in quotes, '0703': YAML takes digits that begin with 0 for an octal number")
            return str(value)
        return value

    @model_validator(mode="after")
    def _selection_is_possible(self) -> Self:
        selects(self.months, "9108")
        if self.categories and not self.metadata:
            raise ValueError("categories are known from a metadata snapshot alone: give metadata: FILE.jsonl")
        return self

    def prepare(self, inputs_uri: str) -> Source:
        """Cut the metadata into months.

        Raises:
            ValueError: a choice by licence without metadata.
        """
        changed = {"uri": storage.absolute(self.uri, is_source=True)}
        if self.metadata is not None:
            snapshot = storage.absolute(self.metadata, is_source=True)
            selection = self.months or "all"
            changed["metadata"] = write_months(
                snapshot, inputs_uri, lambda month: selects(self.months, month), selection
            )
        elif self.licences is not None:
            raise ValueError(
                f"{self.uri}: licences are known from a metadata snapshot alone: give metadata: FILE.jsonl, "
                "or licences: null to take every paper whatever its licence"
            )
        return self.model_copy(update=changed)

    @property
    def address(self) -> str:
        return self.uri

    def probe_uri(self) -> str:
        return storage.join(self.uri, MANIFEST)

    def units(
        self, documents_per_unit: int, val_share: float, classes: Mapping[str, int]
    ) -> Iterator[tuple[str, SourceUnit]]:
        """Cut `documents_per_unit` papers of a tar at a time; the last unit of a tar takes all that follow.

        Split by a hash of tar and first. `affinity` names the tar: units of one tar do well to run on one node.
        """
        months = _months(self)
        for tar, file, num_papers in _chosen(self):
            files = (file, months[tar.yymm]) if tar.yymm in months else (file,)
            for first in range(0, num_papers, documents_per_unit):
                count = min(documents_per_unit, num_papers - first)
                papers = TarRange(md5=tar.md5sum, first=first, count=count, last=first + count == tar.num_items)
                unit = SourceUnit(unit=0, source=self, files=files, tar=papers, affinity=file.uri)
                yield split_of(f"{tar.filename}:{first}", val_share), unit

    def read(self, unit: SourceUnit, max_bytes: int) -> Iterator[RawDocument]:
        """Read papers in the order of the tar. What the manifest promises and the tar lacks is rejected one by one.

        Raises:
            ValueError: before the first paper, if the tar is not the one that the manifest names.
        """
        papers = unit.tar
        assert papers, "a unit of a bulk tar has a range of it"
        tar, *months = unit.files
        path = storage.local_copy(tar.uri)
        if (found := _md5(tar, path)) != papers.md5:
            raise ValueError(
                f"{tar.uri}: its md5 is {found}, in the manifest {papers.md5}: damaged, or replaced; fetch both anew"
            )
        with path.open("rb") as file:  # stays open: the cache may drop it
            slots, fault = _slots(file, tar.uri, papers)
            names = {slot: paper_id(slot.name.rpartition("/")[2].removesuffix(".pdf")) for slot in slots}
            known = papers_of(months[0].uri, set(names.values())) if months else {}
            for member, identifier in names.items():
                yield _paper(self, tar, member, identifier, known.get(identifier), file, max_bytes)
        for number in range(papers.first + len(slots), papers.first + papers.count):
            name = f"{tar.uri.rpartition('/')[2]}#{number}"
            yield RawDocument(name, f"missing-{number}", name, reason=Reason.TAR_ENDS_EARLY, detail=fault)


def _digits(text: object) -> int:
    """Return a number of the manifest; Python's own reading takes 1_000 and 5.0 too."""
    if not re.fullmatch(r"[0-9]{1,9}", str(text)):
        raise ValueError("not a number")
    return int(str(text))


Number = Annotated[int, BeforeValidator(_digits)]


class Tar(BaseModel):
    """An entry of the manifest, as far as it is used here."""

    filename: str = Field(pattern=r"^[A-Za-z0-9_-]+([/.][A-Za-z0-9_-]+)*\.tar$")  # no .. and no / before it
    md5sum: Md5
    yymm: str = Field(pattern=r"^[0-9]{2}(0[1-9]|1[0-2])$")
    seq_num: Number
    num_items: Number = Field(ge=1)


def month_number(yymm: str) -> int:
    """Return a month's number in true order: 9108 … 9912 come before 0001.

    Raises:
        ValueError: it is no month.
    """
    if not re.fullmatch(r"\d\d(0[1-9]|1[0-2])", yymm, re.ASCII):
        raise ValueError(f"{yymm!r} is no month: write YYMM, for instance 0703")
    year, month = int(yymm[:2]), int(yymm[2:])
    return (year + (1900 if year >= 91 else 2000)) * 12 + month


def selects(months: str | None, yymm: str) -> bool:
    """Return whether `months` (YYMM, lists and ranges of it; None: all) holds a month. ValueError where it is wrong."""
    ranges = [part.strip().partition("-")[::2] for part in (months or "9101-9012").split(",")]
    bounds = [(month_number(first.strip()), month_number((last or first).strip())) for first, last in ranges]
    for (first, last), written in zip(bounds, ranges):
        if first > last:
            raise ValueError(
                f"{'-'.join(written)} ends before it begins: months run from 9108 past 9912 and 0001 to now"
            )
    return any(first <= month_number(yymm) <= last for first, last in bounds)


# ---- manifest ------------------------------------------------------------------------------------------------------
def read_manifest(stream: BinaryIO) -> tuple[list[Tar], list[str]]:
    """Return (entries in the order of months and numbers, what is wrong with those that were left out)."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException

    tars = dict[str, Tar]()
    faults = list[str]()
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
    """Yield what stands between each <file> and its end, so that a broken entry harms no other."""
    rest = b""
    number = 0
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
    from defusedxml.ElementTree import fromstring

    body, end, _ = text.partition(b"</file>")
    if not end:
        raise ValueError("no </file>")
    fields = {child.tag: (child.text or "").strip() for child in fromstring(b"<file>" + body + b"</file>")}
    try:
        return Tar.model_validate(fields)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise ValueError(f"{key} is {fields.get(key, '')[:80]!r}") from None


# ---- plan ----------------------------------------------------------------------------------------------------------
def _chosen(source: ArxivSource) -> Iterator[tuple[Tar, FileInfo, int]]:
    """Yield the selected tars, what the listing says of them, and how many papers of each: all, up to max_documents."""
    tars = _selected(source)
    left = source.max_documents
    there = {
        file.uri: file
        for folder in sorted({_uri(source, tar).rpartition("/")[0] for tar in tars})
        for file in storage.list_files(folder)
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


def _months(source: ArxivSource) -> dict[str, FileInfo]:
    """Return the metadata file of each month, as `prepare_arxiv` left it."""
    files = storage.list_files(source.metadata) if source.metadata else ()
    return {file.uri.rpartition("/")[2].removesuffix(".jsonl"): file for file in files}


# ---- unit ----------------------------------------------------------------------------------------------------------
def _slots(file: BinaryIO, uri: str, papers: TarRange) -> tuple[list[Member], str]:
    """Return (the unit's members, what is wrong with the tar)."""
    stop = papers.first + papers.count
    slots = list[Member]()
    try:
        for member in islice(members(file), papers.first, stop + MORE_MEMBERS if papers.last else stop):
            slots.append(member)
    except DamagedTarError as error:
        return slots, f"damaged ({error})"
    if len(slots) == papers.count + MORE_MEMBERS:
        raise ValueError(f"{uri}: holds {MORE_MEMBERS} members and more beyond its manifest's number; fetch both anew")
    return slots, ""


def _paper(
    source: ArxivSource,
    tar: FileInfo,
    member: Member,
    identifier: str,
    paper: Paper | None,
    file: BinaryIO,
    max_bytes: int,
) -> RawDocument:
    origin = f"{tar.uri.rpartition('/')[2]}#{member.start}"
    raw = RawDocument(identifier, "", origin, info=_info(identifier, paper))
    if reason := _unwanted(source, paper):
        return raw._replace(reason=reason, detail=paper.licence if paper and reason is Reason.LICENCE else "")
    if member.start is None:
        return raw._replace(reason=Reason.NOT_A_FILE)
    if member.size > max_bytes:
        return too_large(raw, max_bytes)
    file.seek(member.start)
    return raw._replace(data=file.read(member.size))


def _info(identifier: str, paper: Paper | None) -> dict[str, str]:
    """Return what CC BY asks to be named, and where the paper is."""
    info = {"url": f"https://arxiv.org/abs/{identifier}"}
    return info | paper.model_dump(exclude={"id"}) if paper else info


def _unwanted(source: ArxivSource, paper: Paper | None) -> Reason | None:
    """Why a paper is not wanted, or None."""
    if paper is None:
        return Reason.NO_METADATA if source.licences is not None or source.categories else None
    if source.licences is not None and paper.licence not in map(licence_name, source.licences):
        return Reason.LICENCE
    if source.categories and not set(source.categories) & set(paper.categories.split()):
        return Reason.CATEGORY
    return None


def _md5(file: FileInfo, path: Path) -> str:
    """Return the md5 of a tar, computed once on each node."""

    def fill(target: Path) -> None:
        with path.open("rb") as tar:
            target.write_text(hashlib.file_digest(tar, lambda: hashlib.md5(usedforsecurity=False)).hexdigest())

    return cache.local_copy(f"md5 {file.uri} {file.etag}", f"{path.name}.md5", 32, fill).read_text()
