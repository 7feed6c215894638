"""Receipts: the commit point of a unit. A shard counts when its receipt is there, whole and fitting; never before.

SET/NNNNNN.json says what was offered, written, filtered and rejected; SET/NNNNNN.failed.json that a unit failed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from data_specs import local_files, storage, table
from data_specs.digest import file_digest
from data_specs.records import (
    Dropped,
    Execution,
    Failure,
    InputRead,
    Outcome,
    Reason,
    Receipt,
    RecordError,
    Reject,
    Sample,
    ShardFile,
)
from data_specs.scratch import scratch_folder
from data_specs.shards import Shard, WrittenShard, index_uri, write_shard

log = logging.getLogger(__name__)
_RECEIPT = re.compile(r"[0-9]{6,}\.json")
_OTHER_SIZE = "is not there with the size that its receipt names"


def receipt_name(unit: int) -> str:
    """Return the file name of a unit's receipt."""
    return f"{unit:06d}.json"


def failure_name(unit: int) -> str:
    """Return the file name of the record that a unit failed."""
    return f"{unit:06d}.failed.json"


def commit(set_uri: str, digest: str, unit: int, outcomes: Iterable[Outcome]) -> Receipt:
    """Write the samples among `outcomes` as the unit's shard, upload it, then create the receipt.

    Args:
        set_uri: the shard set.
        digest: that of the set's plan.
        unit: the unit's number.
        outcomes: samples, what was dropped, and what was read, in any order; they are consumed by streaming.

    Returns:
        The receipt that holds: the loser of a race adopts the winner's.
    """
    started = time.time()
    dropped = list[Dropped]()
    read = list[InputRead]()
    with scratch_folder() as folder:
        shard, rows = _write(_samples(outcomes, dropped, read), folder)
        file = _upload_shard(folder, shard, rows, set_uri, unit)
    ended = time.time()
    receipt = Receipt(
        digest=digest,
        unit=unit,
        offered=shard.nsamples + len(dropped),
        written=shard.nsamples,
        filtered=_sorted(Counter(one.reason for one in dropped if one.reason.kind == "filtered")),
        rejected=tuple(Reject(**one._asdict()) for one in dropped if one.reason.kind == "rejected"),
        shard=file,
        read=tuple(read),
        ran=Execution(host=socket.gethostname(), seconds=round(ended - started, 3), ended=round(ended, 3)),
    )
    receipt = _create_or_adopt(storage.join(set_uri, receipt_name(unit)), receipt)
    storage.delete(storage.join(set_uri, failure_name(unit)))
    return receipt


def remake(set_uri: str, receipt: Receipt, gone: Callable[[Sample], bool]) -> Receipt:
    """Make a unit's shard anew without the samples for which `gone` is true, counted as removed.

    The new shard is there before the receipt names it, the old one goes last, and `replaces` keeps its name: a remake
    that was killed is finished by the next. Returns the receipt that holds then. Not while a job writes the set.
    """
    if receipt.shard is not None:
        old = Shard(storage.join(set_uri, receipt.shard.name), receipt.shard)
        rows_there = table.table_of(old).to_pylist()
        samples = (Sample(old.key(n), old.fields(n), row) for n, row in enumerate(rows_there))
        with scratch_folder() as folder:
            shard, rows = _write((sample for sample in samples if not gone(sample)), folder)
            if shard.nsamples < receipt.written:
                receipt = _remade(receipt, shard, _upload_shard(folder, shard, rows, set_uri, receipt.unit))
                storage.write(storage.join(set_uri, receipt_name(receipt.unit)), receipt.to_json())
    for name in receipt.replaces:
        _delete_shard(set_uri, name)
    return receipt


def _remade(receipt: Receipt, shard: WrittenShard, file: ShardFile | None) -> Receipt:
    assert receipt.shard is not None
    taken = Counter({Reason.REMOVED: receipt.written - shard.nsamples})
    changes = {
        "written": shard.nsamples,
        "filtered": _sorted(Counter(receipt.filtered) + taken),
        "shard": file,
        "replaces": (*receipt.replaces, receipt.shard.name),
    }
    return Receipt.model_validate(dict(receipt) | changes)


def discard(set_uri: str, unit: int) -> None:
    """Delete a unit's shard, then its receipt, so that the next run makes it anew. Not while a job writes."""
    for name in shards_of(set_uri, unit):
        _delete_shard(set_uri, name)
    storage.delete(storage.join(set_uri, receipt_name(unit)))


def shards_of(set_uri: str, unit: int) -> list[str]:
    """Return the names of a unit's tars: the one of its receipt; where that is damaged, all that bear its number.

    None where it has no receipt.
    """
    uri = storage.join(set_uri, receipt_name(unit))
    try:
        receipt = parse_receipt(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return []
    except RecordError:
        names = (file.uri.rpartition("/")[2] for file in storage.list_files(set_uri))
        return [name for name in names if name.startswith(f"{unit:06d}-") and name.endswith(".tar")]
    return [receipt.shard.name] if receipt.shard else []


def _delete_shard(set_uri: str, name: str) -> None:
    storage.delete(storage.join(set_uri, name))
    storage.delete(index_uri(storage.join(set_uri, name)))
    storage.delete(table.table_uri(storage.join(set_uri, name)))


def _write(samples: Iterable[Sample], folder: Path) -> tuple[WrittenShard, table.TableRows]:
    rows = table.TableRows()
    return write_shard(rows.recorded(samples), folder / "shard.tar", folder / "shard.index.npy"), rows


def _upload_shard(
    folder: Path, shard: WrittenShard, rows: table.TableRows, set_uri: str, unit: int
) -> ShardFile | None:
    """Upload the shard that `_write` left in a folder: tar, index and table; None where it has no sample."""
    if not shard.nsamples:
        return None
    name = f"{unit:06d}-{shard.sha256[:8]}.tar"
    tar_uri = storage.join(set_uri, name)
    data = rows.to_parquet(unit, name, shard.offsets)
    (folder / "shard.parquet").write_bytes(data)
    table_sha256 = hashlib.sha256(data).hexdigest()
    _upload_file(folder / "shard.tar", tar_uri, shard.sha256)
    _upload_file(folder / "shard.index.npy", index_uri(tar_uri), shard.index_sha256)
    _upload_file(folder / "shard.parquet", table.table_uri(tar_uri), table_sha256)
    return ShardFile(
        name=name,
        bytes=shard.filesize,
        md5=shard.md5sum,
        sha256=shard.sha256,
        index_sha256=shard.index_sha256,
        table_sha256=table_sha256,
    )


def _upload_file(path: Path, uri: str, sha256: str) -> None:
    """Upload a file; one there of other bytes is damaged, and is replaced."""
    if not storage.create(uri, path) and file_digest(uri) != sha256:
        storage.write(uri, path)


def _samples(outcomes: Iterable[Outcome], dropped: list[Dropped], read: list[InputRead]) -> Iterator[Sample]:
    for outcome in outcomes:
        if isinstance(outcome, Sample):
            yield outcome
        elif isinstance(outcome, Dropped):
            dropped.append(outcome)
        else:
            read.append(outcome)


def _sorted(counts: Counter[Reason]) -> dict[Reason, int]:
    return dict(sorted(counts.items()))


def _create_or_adopt(uri: str, ours: Receipt) -> Receipt:
    """Create the receipt, or take the one already there if it is valid; a damaged one is replaced by ours."""
    data = ours.to_json()
    if not storage.create(uri, data):
        with suppress(RecordError):
            if there := read_receipt(uri, ours.digest):
                return there
        storage.write(uri, data)
    return ours


def parse_receipt(data: bytes, uri: str) -> Receipt:
    """Read the receipt that a file holds.

    Raises:
        RecordError: it holds no receipt, or another unit's; the message names it.
    """
    receipt = Receipt.parse(data, uri)
    if uri.rpartition("/")[2] != receipt_name(receipt.unit):
        raise RecordError(f"{uri}: says it is unit {receipt.unit}")
    return receipt


def read_receipt(uri: str, digest: str) -> Receipt | None:
    """Return a unit's receipt; None where this plan has none.

    Raises:
        RecordError: it is damaged, or its shard is not there with its size; the line names the file.
    """
    try:
        receipt = parse_receipt(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise RecordError(f"{error}; run the stage again") from None
    if receipt.digest != digest:
        return None
    if receipt.shard:
        tar_uri = storage.join(uri.rpartition("/")[0], receipt.shard.name)
        tar = storage.stat(tar_uri)
        if tar is None or tar.size != receipt.shard.bytes:
            raise RecordError(f"{tar_uri}: {_OTHER_SIZE}; run the stage again")
    return receipt


def valid_receipts(set_uri: str, digest: str) -> Iterator[Receipt]:
    """Yield all valid receipts of a shard set in order of unit; damaged ones are named."""
    for _, receipt, fault in read_receipts(set_uri):
        if fault:
            log.warning("%s: its unit counts as not done", fault)
        elif receipt and receipt.digest == digest:
            yield receipt


def read_receipts(set_uri: str) -> Iterator[tuple[str, Receipt | None, str]]:
    """Yield the file name, the receipt and what is wrong of each receipt of a set, in order of unit.

    They come from one listing of the folder.

    A receipt is None where its file holds none, or is no file; nothing is wrong ("") where its shard is there with its
    size.
    """
    for uri, what in () if storage.is_remote(set_uri) else local_files.not_files(set_uri):
        if _RECEIPT.fullmatch(name := uri.rpartition("/")[2]):
            yield name, None, f"{uri}: {what} in the place of a receipt: take it away"
    sizes = {file.uri.rpartition("/")[2]: file.size for file in storage.list_files(set_uri)}
    names = sorted((name for name in sizes if _RECEIPT.fullmatch(name)), key=lambda name: (len(name), name))
    contents = storage.read_many(set_uri, names)
    for name, data in zip(names, contents, strict=True):
        if data is None:  # gone since it was listed
            continue
        try:
            receipt = parse_receipt(data, storage.join(set_uri, name))
        except RecordError as error:
            yield name, None, str(error)
            continue
        fault = ""
        if (shard := receipt.shard) and sizes.get(shard.name) != shard.bytes:
            fault = f"{storage.join(set_uri, shard.name)}: {_OTHER_SIZE}"
        yield name, receipt, fault


def record_failure(set_uri: str, unit: int, reason: str) -> None:
    """Write SET/NNNNNN.failed.json: the unit failed and has committed nothing; a later run tries it again."""
    failure = Failure(unit=unit, reason=reason, host=socket.gethostname(), ended=round(time.time(), 3))
    storage.write(storage.join(set_uri, failure_name(unit)), failure.to_json())
