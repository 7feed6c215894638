"""Verification: every byte of a shard set against its receipts, indexes and manifest (`dnd verify ROOT`)."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from data_specs import local_files, storage
from data_specs.lease import holder_of, is_alive
from data_specs.manifest import Account, load_manifest, parts_named
from data_specs.npy import read_array
from data_specs.receipts import read_receipts, receipt_name
from data_specs.records import Manifest, Receipt, RecordError, ShardFile
from data_specs.root import name_under
from data_specs.scratch import scratch_folder
from data_specs.shards import INDEX_DTYPE, index_uri
from data_specs.table import table_uri
from data_specs.units import Plan, require_plan

_SHARD_FILE = re.compile(r"\.tar$|\.index\.npy$|\.parquet$|^manifest-\d{4,}-[0-9a-f]{8}\.json$")


def find_shard_sets(root: str) -> list[str]:
    """Return the folders under a root that hold a shard set: a plan, or receipts whose plan is lost.

    Links to folders are followed; a set that has several paths is named by the one without links.
    """
    if storage.is_remote(root):
        return list(_sets(root, linked=False))
    found = {os.path.realpath(uri): uri for linked in (True, False) for uri in _sets(root, linked)}
    return sorted(found.values(), key=lambda uri: uri.split("/"))


def _sets(folder: str, linked: bool, above: tuple[str, ...] = ()) -> Iterator[str]:
    if any(storage.exists(storage.join(folder, name)) for name in ("plan.jsonl", receipt_name(0))):
        yield folder
    elif (real := os.path.realpath(folder)) not in above:  # else links lead in a circle
        for one in storage.list_folders(folder, linked):
            yield from _sets(one, linked, (*above, real))


def verify_set(set_uri: str) -> Iterator[str]:
    """Re-read a shard set and yield one line for each thing that is wrong; nothing where all is well."""
    try:
        plan = require_plan(set_uri)
    except ValueError as error:
        yield str(error)
        return
    try:
        for _ in plan.units():  # raises where one is damaged or lost
            pass
    except ValueError as error:
        yield str(error)
    account = Account()
    known = set[str]()
    yield from _verify_receipts(plan, account, known)
    for name in _litter(set_uri, known):
        yield f"{set_uri}/{name}: belongs to no receipt (litter; `dnd verify --clean` removes it)"
    yield from _verify_manifest(plan, account)


def _verify_receipts(plan: Plan, account: Account, known: set[str]) -> Iterator[str]:
    """Compare receipts with their shards and the plan.

    Args:
        plan: of the set.
        account: gets those that count.
        known: gets what names of their files begin with.
    """
    units = set[int]()
    for name, receipt, fault in read_receipts(plan.set_uri):
        known.add(_name_prefix(name, receipt))
        if receipt is None:
            yield f"{fault}; run the stage again"
            continue
        units.add(receipt.unit)
        yield from _verify_receipt(plan, receipt)
        if receipt.digest == plan.digest and not fault:
            account.add(receipt)
    yield from _missing(plan, units)


def _name_prefix(name: str, receipt: Receipt | None) -> str:
    """Return how the names of a receipt's files begin: as its shard's, or as its unit's where it is damaged."""
    if receipt is None:
        return name.removesuffix(".json")
    return receipt.shard.name.removesuffix(".tar") if receipt.shard else ""


def _litter(set_uri: str, known: set[str]) -> Iterator[str]:
    """Names of tars, indexes and tables of no known shard or unit, and of parts that the manifest does not name."""
    try:
        known = known | {name.removesuffix(".json") for name in parts_named(set_uri)}
    except (RecordError, OSError):  # of a damaged manifest the parts may be whole
        known = known | {"manifest"}
    for file in storage.list_files(set_uri):
        name = file.uri.rpartition("/")[2]
        stem = name.partition(".")[0]
        if _SHARD_FILE.search(name) and not {stem, stem.partition("-")[0]} & known:
            yield name


def clean_litter(set_uri: str) -> list[str]:
    """Remove tars and indexes that no receipt names, and return their names. Not while a job writes the set."""
    known = {_name_prefix(name, receipt) for name, receipt, _ in read_receipts(set_uri)}
    names = list(_litter(set_uri, known))
    for name in names:
        storage.delete(storage.join(set_uri, name))
    return names


def clean_unfinished(root: str) -> Iterator[str]:
    """Remove what killed processes were writing under a local root, and their scratch folders on this machine.

    Yields the paths under the root. A folder in which somebody writes now is left alone.
    """
    with scratch_folder():  # the next one that is made removes those of the dead
        pass
    if storage.is_remote(root):
        return
    for path in local_files.unfinished(root):
        holder = holder_of(storage.join(root, name_under(root, path).partition("/")[0]))
        if not (holder and is_alive(holder)):
            local_files.remove_unfinished(path)
            yield path


def _verify_receipt(plan: Plan, receipt: Receipt) -> Iterator[str]:
    uri = storage.join(plan.set_uri, receipt_name(receipt.unit))
    if receipt.digest != plan.digest:
        yield f"{uri}: its digest is not the plan's"
    elif receipt.unit >= plan.num_units:
        yield f"{uri}: says it is unit {receipt.unit}, the plan has {plan.num_units}"
    if receipt.shard:
        yield from _verify_shard(storage.join(plan.set_uri, receipt.shard.name), receipt.shard, receipt.written)


def _verify_shard(tar_uri: str, shard: ShardFile, written: int) -> Iterator[str]:
    files = (
        (tar_uri, {"sha256": shard.sha256, "md5": shard.md5}),
        (index_uri(tar_uri), {"sha256": shard.index_sha256}),
        (table_uri(tar_uri), {"sha256": shard.table_sha256}),
    )
    for uri, wanted in files:
        try:
            same = _hashes(uri, list(wanted)) == wanted
        except OSError as error:
            yield f"{uri}: {'is missing' if isinstance(error, FileNotFoundError) else error.strerror}"
            return
        if not same:
            yield f"{uri}: its bytes are not those its receipt names"
            return
    yield from _verify_index(tar_uri, written, shard.bytes)


def _verify_index(tar_uri: str, written: int, num_bytes: int) -> Iterator[str]:
    """Compare index and receipt, whose hashes have been found right: numbers that do not fit mean a false receipt."""
    rows = read_array(io.BytesIO(storage.read_bytes(index_uri(tar_uri))))
    if rows.dtype != INDEX_DTYPE:
        yield f"{index_uri(tar_uri)}: not the index of a shard"
        return
    samples = len(np.unique(rows["sample"]))
    end = int((rows["offset"] + rows["size"]).max(initial=0))
    if samples != written:
        yield f"{tar_uri}: holds {samples} samples, its receipt says {written}"
    if end > num_bytes:
        yield f"{tar_uri}: has {num_bytes} bytes, its index points to {end}"


def _hashes(uri: str, names: list[str]) -> dict[str, str]:
    """Hashes of a file's bytes by name of the algorithm."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with storage.open_stream(uri) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            for value in hashes.values():
                value.update(block)
    return {name: value.hexdigest() for name, value in hashes.items()}


def _missing(plan: Plan, units: set[int]) -> Iterator[str]:
    missing = plan.num_units - sum(unit < plan.num_units for unit in units)
    if missing > 0:
        first = islice((unit for unit in range(plan.num_units) if unit not in units), 10)
        shown = ", ".join(map(str, first)) + (", …" if missing > 10 else "")
        yield f"{plan.set_uri}: {missing} of {plan.num_units} units have no receipt: {shown}"


def _verify_manifest(plan: Plan, account: Account) -> Iterator[str]:
    uri = storage.join(plan.set_uri, "manifest.json")
    if not storage.exists(uri):
        yield f"{uri}: is missing; run the stage again"
        return
    try:
        stored = load_manifest(uri)
    except (ValueError, OSError) as error:
        yield f"{error}; run the stage again"
        return
    wanted = account.manifest(plan, stored.name)
    if stored != wanted:
        differ = [key for key in Manifest.model_fields if getattr(stored, key) != getattr(wanted, key)]
        yield f"{uri}: does not agree with the receipts in {', '.join(differ)}; run the stage again"
