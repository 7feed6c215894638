"""Licences of arXiv papers: a metadata snapshot (JSON Lines, 4 GB) is read once, when planned, into a file a month.

A line of such a file: id, licence, title, authors, categories. Workers read the file of their tar's month alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from data_specs import storage
from data_specs.records import Record
from data_specs.scratch import scratch_folder
from data_specs.sources.names import as_utf8
from data_specs.sources.packed import open_unpacked
from data_specs.sources.text import LINE_BYTES, read_lines

_OLD_ID = re.compile(r"([a-z-]+(?:\.[A-Z]{2})?)/?(\d{4})(\d{3})(?:v\d+)?")
_NEW_ID = re.compile(r"(\d{4})\.\d{4,5}(?:v\d+)?")


class Paper(Record):
    """What is known of a paper: a line of a month's file."""

    id: str
    licence: str
    title: str
    authors: str
    categories: str


def paper_id(name: str) -> str:
    """Write an identifier as arXiv does, without its version: hep-th0703012 -> hep-th/0703012. Others stay."""
    if old := _OLD_ID.fullmatch(name):
        return f"{old[1]}/{old[2]}{old[3]}"
    return name.partition("v")[0] if _NEW_ID.fullmatch(name) else name


def month_of(identifier: str) -> str | None:
    """Return the YYMM of an identifier, or None where the text is not one."""
    found = _OLD_ID.fullmatch(identifier), _NEW_ID.fullmatch(identifier)
    return found[0][2] if found[0] else found[1][1] if found[1] else None


def licence_name(text: str | None) -> str:
    """Return a licence as SPDX names it, from its address: http or https, with or without a slash at the end.

    arXiv's own: arXiv-nonexclusive-distrib-1.0, and arXiv-assumed-1991-2003 for the years before it asked. No licence
    is "none"; what is not known stays as it is.
    """
    address = re.sub(r"^https?://(www\.)?", "", (text or "").strip()).rstrip("/")
    path = re.sub(r"(/deed|/legalcode)(\.\w+)?$", "", address).lower()
    if found := re.fullmatch(r"creativecommons\.org/publicdomain/zero/([\d.]+)", path):
        return f"CC0-{found[1]}"
    if re.fullmatch(r"creativecommons\.org/(licenses/publicdomain|publicdomain/mark/[\d.]+)", path):
        return "CC-PDDC"
    if found := re.fullmatch(r"creativecommons\.org/licenses/([a-z-]+)/([\d.]+)(?:/([a-z]+))?", path):
        return "-".join(["CC", found[1].upper(), found[2], *([found[3].upper()] if found[3] else [])])
    if found := re.fullmatch(r"arxiv\.org/licenses/(.+)", path):
        return "arXiv-" + found[1].replace("/", "-")
    return (text or "").strip() or "none"


def write_months(metadata_uri: str, inputs_uri: str, wanted: Callable[[str], bool], selection: str) -> str:
    """Write YYMM.jsonl of the wanted months into a folder under `inputs_uri`, returned; whole ones are kept.

    Args:
        selection: names what `wanted` takes.

    Raises:
        ValueError: there is no snapshot, or no line of it fits.
    """
    info = storage.stat(metadata_uri)
    if info is None:
        raise ValueError(f"{metadata_uri}: there is no metadata snapshot; correct metadata, or set licences: null")
    code = hashlib.sha256(json.dumps([*info, selection]).encode()).hexdigest()[:8]
    folder = storage.join(inputs_uri, f"arxiv-{code}")
    if not storage.exists(f"{folder}.json"):
        with scratch_folder() as scratch:
            papers, num_broken = _sort_by_month(metadata_uri, wanted, scratch)
            for month in papers:
                storage.create(storage.join(folder, f"{month}.jsonl"), scratch / month)
        report = {"metadata": metadata_uri, "papers": papers, "broken_lines": num_broken}
        storage.create(f"{folder}.json", json.dumps(report).encode())
    return folder


def _sort_by_month(metadata_uri: str, wanted: Callable[[str], bool], folder: Path) -> tuple[dict[str, int], int]:
    """Write the wanted papers into FOLDER/MONTH; return their number by month, and how many lines hold no paper."""
    papers = Counter[str]()
    lines = Counter[str]()
    with ExitStack() as stack, open_unpacked(metadata_uri) as stream:
        files = dict[str, BinaryIO]()
        for line, length in read_lines(stream):
            paper = _parse(line) if length <= LINE_BYTES else None
            month = month_of(paper.id) if paper else None
            lines["whole" if month else "broken"] += 1
            if paper and month and wanted(month):
                if month not in files:
                    files[month] = stack.enter_context((folder / month).open("wb"))
                files[month].write(paper.to_json())
                papers[month] += 1
    if not lines["whole"]:
        raise ValueError(f"{metadata_uri}: no line has an arXiv id; give JSON Lines with id and license")
    return dict(sorted(papers.items())), lines["broken"]


def _parse(line: bytes) -> Paper | None:
    try:
        found = json.loads(line)
        texts = {
            key: as_utf8(" ".join(str(found.get(key) or "").split())) for key in ("title", "authors", "categories")
        }
        return Paper(
            id=paper_id(as_utf8(str(found["id"]))), licence=as_utf8(licence_name(found.get("license"))), **texts
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def papers_of(month_uri: str, wanted: Collection[str]) -> dict[str, Paper]:
    """Return what is known of the wanted papers, by id."""
    return {paper.id: paper for paper in _papers(month_uri) if paper.id in wanted}


def _papers(month_uri: str) -> Iterator[Paper]:
    with storage.local_copy(month_uri).open("rb") as lines:
        for line in lines:
            yield Paper.parse(line, month_uri)
