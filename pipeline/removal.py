"""Taking documents or single samples out of a finished set: `dnd remove ROOT --ids FILE`, `--samples FILE`.

What is to go is first written down under ROOT/images/removed/, which every later rendering heeds; then the shards that
hold it are made anew without it. Each step can be killed and repeated. Not while a job writes the same root.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from data_specs import local_files, storage
from data_specs.lease import hold
from data_specs.manifest import merge
from data_specs.receipts import discard, read_receipt, receipt_name, remake, shards_of
from data_specs.records import (
    Dropped,
    Manifest,
    Outcome,
    RangeUnit,
    Reason,
    Removed,
    Sample,
    ShardUnit,
    SourceUnit,
)
from data_specs.root import name_under
from data_specs.source import key_of
from data_specs.sources.planning import SPLITS
from data_specs.table import read_table
from data_specs.units import Plan, read_plan, require_plan
from data_specs.verify import find_shard_sets
from pipeline.stages import VIEWS, UnitStage, find, leased_folder, registered

log = logging.getLogger(__name__)
ARCHIVES = (  # of arXiv's identifiers before April 2007
    "acc-phys|adap-org|alg-geom|ao-sci|astro-ph|atom-ph|bayes-an|chao-dyn|chem-ph|cmp-lg|comp-gas|cond-mat|cs|dg-ga|"
    "funct-an|gr-qc|hep-ex|hep-lat|hep-ph|hep-th|math-ph|math|mtrl-th|nlin|nucl-ex|nucl-th|patt-sol|physics|plasm-ph|"
    "q-alg|q-bio|quant-ph|solv-int|supr-con"
)


class Removal(NamedTuple):
    """What must not be in a set: documents by their plain ids (`normalised_id`), samples as SPLIT/UNIT/KEY."""

    ids: frozenset[str]
    samples: frozenset[str]

    def holds_document(self, document_id: str) -> bool:
        """Return whether a document must go."""
        return bool(self.ids) and normalised_id(document_id) in self.ids

    def holds(self, name: str, document_id: str) -> bool:
        """Return whether a sample SPLIT/UNIT/KEY of a document must go."""
        return name in self.samples or self.holds_document(document_id)

    def holds_sample(self, unit: str, sample: Sample) -> bool:
        """Return whether a sample of a unit SPLIT/UNIT must go, as it was rendered or lies in a shard."""
        assert sample.row is not None
        return self.holds(f"{unit}/{sample.key}", sample.row["document"])


def normalised_id(document_id: str) -> str:
    """Normalise an id for comparison.

    People write arXiv:2401.00001v2 [cs.CL], its address or DOI, 2401-00001.pdf, and hep-th/0703012 or HEP-TH-0703012,
    for one paper.
    """
    text = unicodedata.normalize("NFC", document_id).strip("\ufeff \t\r\n").removeprefix("./")
    text = re.sub(r"^(https?://)?(www\.|export\.)?arxiv\.org/(abs|pdf|html|format|e-print|src)/", "", text, flags=re.I)
    text = re.sub(r"^((https?://(dx\.)?doi\.org/|doi:\s*)?10\.48550/)?arxiv[:.]\s*", "", text, flags=re.I)
    text = re.sub(r"(?<=\d)\s+\[[a-z.-]+\]$", "", text, flags=re.I)
    text = re.sub(r"\.(pdf|jsonl|json|txt|md|html|png|jpe?g|webp|bmp)$", "", text, flags=re.I)
    if found := re.fullmatch(r"(\d\d(?:0[1-9]|1[0-2]))[./_-](\d{4,5})(v\d+)?", text, flags=re.I):
        return f"{found[1]}.{found[2]}"
    if found := re.fullmatch(rf"({ARCHIVES})(\.[a-z-]{{2,12}})?[/_-]?(\d{{7}})(v\d+)?", text, flags=re.I):
        return f"{found[1].lower()}/{found[3]}"
    return text


def read_removed(images_uri: str) -> Removal:
    """Read all that was ever removed from ROOT/images."""
    files = storage.list_files(storage.join(images_uri, "removed"))
    found = [Removed.parse(storage.read_bytes(file.uri), file.uri) for file in files]
    return Removal(
        frozenset(normalised_id(document_id) for one in found for document_id in one.ids),
        frozenset(name for one in found for name in one.samples),
    )


def check_removed(set_uri: str) -> Iterator[str]:
    """Yield a line for each sample of an image set that was removed once, and is there all the same."""
    try:
        removed = read_removed(set_uri.rpartition("/")[0])
        plan = read_plan(set_uri)
        there = list(_not_removed(plan, removed)) if plan and any(removed) else []
    except ValueError as error:  # a record of what was removed is damaged, or the plan
        yield str(error)
        return
    for name, document in there:
        yield f"{set_uri}: {name} of {document} was removed once and is there: run `dnd remove` again"


def _not_removed(plan: Plan, removed: Removal) -> Iterator[tuple[str, str]]:
    """(SPLIT/UNIT/KEY, document) of each sample of a set that must not be in it."""
    samples = (sample for unit in _units_with(plan, removed) for sample in _samples(plan, unit))
    return ((name, document) for name, document in samples if removed.holds(name, document))


def remove_again(plan: Plan) -> Manifest | None:
    """Take out of a set what was removed once and was rendered all the same, by a job that outlived its lease.

    The caller holds the lease of the set.

    Returns:
        The set's new manifest; None where nothing was to be done.
    """
    removed = read_removed(plan.set_uri.rpartition("/")[0])
    number = sum(1 for _ in _not_removed(plan, removed)) if any(removed) else 0
    if not number:
        return None
    for _ in _remake_set(plan, removed):
        pass
    log.warning("%s: %d samples that had been removed before are taken out again", plan.set_uri, number)
    return merge(plan, "images", partial=True)


def unit_without(unit: SourceUnit, removed: Removal) -> SourceUnit:
    """Return a unit without the removed documents, and the files that only those need; one of a tar unchanged."""
    if not any(removed.holds_document(document.id) for document in unit.documents):
        return unit
    kept = [document for document in unit.listed() if not removed.holds_document(document.id)]
    return SourceUnit.of(unit.source, kept, unit.affinity).model_copy(update={"unit": unit.unit})


def outcomes_without(split: str, unit: SourceUnit, removed: Removal, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Yield the outcomes of `unit_without(unit, removed)`, with what is removed of the unit as counted drops."""
    for document in unit.documents:
        if removed.holds_document(document.id):
            yield Dropped(key_of(document.id), "", Reason.REMOVED)
    for outcome in outcomes:
        if isinstance(outcome, Sample) and removed.holds_sample(f"{split}/{unit.unit}", outcome):
            yield Dropped(outcome.key, "", Reason.REMOVED)
        else:
            yield outcome


def remove(root: str, ids: Iterable[str], samples: Iterable[str]) -> Iterator[str]:
    """Remove documents and samples from ROOT/images and from what was made of it; yield lines that say what was done.

    Raises:
        ValueError: there is no image set, a sample is not given as SPLIT/UNIT/KEY, a job writes here; or, after all
            else was done, some id or sample matched nothing.
    """
    images = storage.join(root, "images")
    sets = [plan.set_uri for plan in _plans(root)]  # raises where one is lost: nobody would know what it holds
    plans = [plan for split in SPLITS if (plan := read_plan(storage.join(images, split)))]
    if not plans:
        raise ValueError(f"{images}: there is no image set here")
    written = {normalised_id(one): one.strip() for one in ids}
    wanted = Removal(frozenset(written), frozenset(samples))
    if wrong := [name for name in wanted.samples if not re.fullmatch(r"(train|val)/\d+/[A-Za-z0-9_-]+", name)]:
        raise ValueError(f"{wrong[0]!r} names no sample: write SPLIT/UNIT/KEY, for instance train/12/2301-00001-p0001")
    with ExitStack() as stack:
        for folder in sorted({leased_folder(name_under(root, uri)) for uri in sets}):
            stack.enter_context(hold(storage.join(root, folder), "dnd remove"))
        before = read_removed(images)
        documents, found = _found(plans, wanted)
        known = Removal(before.ids | documents.keys(), before.samples | found)
        for one in sorted(wanted.ids & known.ids):
            yield f"{written[one]}: {', '.join(sorted(documents.get(one, ()))) or 'was removed before'}"
        yield from _remove_from_sets(root, plans, Removal(wanted.ids & known.ids, wanted.samples & known.samples))
    if nothing := [written[one] for one in sorted(wanted.ids - known.ids)] + sorted(wanted.samples - known.samples):
        raise ValueError(f"matched nothing, and is not recorded: {', '.join(nothing)}")


def _remove_from_sets(root: str, plans: list[Plan], wanted: Removal) -> Iterator[str]:
    if not any(wanted):
        return
    _record(storage.join(root, "images"), wanted)
    replaced = set[str]()
    for plan in plans:
        for line, names in _remake_set(plan, wanted):
            replaced.update(names)
            yield line
        if storage.exists(storage.join(plan.set_uri, "manifest.json")):
            merge(plan, "images", partial=True)
    yield from _remove_derived(root, replaced)


def _found(plans: list[Plan], wanted: Removal) -> tuple[dict[str, set[str]], set[str]]:
    """Return what of the wanted there is: plain id -> ids of the documents, and names of the samples."""
    documents = dict[str, set[str]]()
    names = set[str]()
    for plan in plans:
        for unit in _units_with(plan, wanted):
            samples = _samples(plan, unit)
            names.update(name for name, _ in samples if name in wanted.samples)
            there = [document.id for document in unit.documents] + [document for _, document in samples]
            for document_id in filter(wanted.holds_document, there):
                documents.setdefault(normalised_id(document_id), set()).add(document_id)
    return documents, names


def _units_with(plan: Plan, wanted: Removal) -> Iterator[SourceUnit]:
    """Units of a set that may hold, or held, something wanted."""
    named = {name.rpartition("/")[0] for name in wanted.samples}
    months = {_month(document_id) for document_id in wanted.ids}
    for unit in plan.units_of(SourceUnit):
        listed = any(wanted.holds_document(document.id) for document in unit.documents)
        if listed or _name(plan, unit) in named or _of_months(unit, months):
            yield unit


def _name(plan: Plan, unit: SourceUnit) -> str:
    """SPLIT/UNIT, with which the names of a unit's samples begin."""
    return f"{plan.set_uri.rpartition('/')[2]}/{unit.unit}"


def _samples(plan: Plan, unit: SourceUnit) -> list[tuple[str, str]]:
    """(SPLIT/UNIT/KEY, document) of each sample that a unit has made."""
    receipt = read_receipt(storage.join(plan.set_uri, receipt_name(unit.unit)), plan.digest)
    if receipt is None or receipt.shard is None:
        return []
    table = read_table(storage.join(plan.set_uri, receipt.shard.name), receipt.shard.table_sha256, receipt.written)
    rows = table.select(["key", "document"]).to_pylist()
    return [(f"{_name(plan, unit)}/{row['key']}", row["document"]) for row in rows]


def _record(images_uri: str, wanted: Removal) -> None:
    data = Removed(ids=tuple(sorted(wanted.ids)), samples=tuple(sorted(wanted.samples))).to_json()
    name = hashlib.sha256(data).hexdigest()[:16]
    storage.create(storage.join(images_uri, "removed", f"{name}.json"), data)


def _remake_set(plan: Plan, wanted: Removal) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(line, names that the shard had before) for each shard of a set that holds, or held, something to remove."""
    split = plan.set_uri.rpartition("/")[2]
    for unit in _units_with(plan, wanted):
        receipt = read_receipt(storage.join(plan.set_uri, receipt_name(unit.unit)), plan.digest)
        if receipt is None:
            continue
        before = receipt.written
        receipt = remake(plan.set_uri, receipt, partial(wanted.holds_sample, _name(plan, unit)))
        if receipt.replaces:
            yield f"images/{split}: unit {unit.unit}: {before - receipt.written} samples removed", receipt.replaces


def _of_months(unit: SourceUnit, months: set[str]) -> bool:
    """Whether a unit is of a bulk tar of one of these months."""
    return unit.tar is not None and any(f"_{month}_" in unit.files[0].uri for month in months)


def _month(arxiv_id: str) -> str:
    """YYMM of an arXiv id, as it stands in the names of tars."""
    found = re.search(r"\d{4}", arxiv_id.rpartition("/")[2])
    return found.group() if found else "none"


def _remove_derived(root: str, replaced: set[str]) -> Iterator[str]:
    """Take away what was made from the replaced shards, the last of it first; name what learned of it or shows it."""
    plans = list(_plans(root))
    gone = set(replaced)
    stale = list[tuple[UnitStage, Plan, list[int]]]()
    for stage in registered():
        for plan in plans:
            if isinstance(stage, UnitStage) and plan.identity.stage == stage.name and (units := _reading(plan, gone)):
                gone.update(name for unit in units for name in shards_of(plan.set_uri, unit))
                stale.append((stage, plan, units))
    for stage, plan, units in reversed(stale):
        yield _discard_derived(root, stage, plan, units)
    if replaced:
        yield from _stale(root)


def _reading(plan: Plan, shards: set[str]) -> list[int]:
    """Numbers of the units that read one of these shards; names of shards hold a digest of their bytes."""
    return [unit.unit for unit in plan.units() if isinstance(unit, ShardUnit) and unit.shard in shards]


def _discard_derived(root: str, stage: UnitStage, plan: Plan, units: list[int]) -> str:
    """Discard units of a set, or the folder that it lies in with all beside it; return a line that says so."""
    if stage.remade == "folder":
        folder = plan.set_uri.rpartition("/")[0]
        _delete_all(folder)
        return f"{name_under(root, folder)}: removed, since it was made from those; run `dnd {stage.name}` again"
    storage.delete(storage.join(plan.set_uri, "manifest.json"))
    for number in units:
        discard(plan.set_uri, number)
    return f"{name_under(root, plan.set_uri)}: {len(units)} shards removed; run `dnd {stage.name}` to make them anew"


def _plans(root: str) -> Iterator[Plan]:
    return map(require_plan, find_shard_sets(root))


def _stale(root: str) -> Iterator[str]:
    """Lines for what still names or shows what is removed, has learned from it, or was drawn by what has."""
    for name, command in VIEWS.items():
        if next(storage.list_files(storage.join(root, name)), None):
            yield f"{name}: shows or names what is removed, perhaps; delete it, or make it anew by `{command}`"
    learned = set[str]()
    for stage in registered():
        if stage.trains and storage.exists(storage.join(root, stage.makes, "stage.json")):
            learned.add(stage.name)
            yield f"{stage.makes}: was trained on what is removed now; the next `dnd {stage.name}` here is refused"
    for plan in _plans(root):
        drawn = find(plan.identity.stage)
        if drawn and learned & set(drawn.reads) and any(isinstance(unit, RangeUnit) for unit in plan.units()):
            yield f"{name_under(root, plan.set_uri)}: was made by what was trained on it"


def _delete_all(folder: str) -> None:
    """Delete a folder's files, plans last: what is left of a killed deletion is still found as a set.

    Of links that somebody laid there the link alone goes.
    """
    remote = storage.is_remote(folder)
    files = (file.uri for file in storage.list_files(folder)) if remote else local_files.own_files(folder)
    for uri in sorted(files, key=lambda uri: uri.endswith("plan.jsonl")):
        storage.delete(uri)
