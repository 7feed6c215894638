"""The S3 half of storage: the verbs that `storage` documents, for `s3://bucket/key` on AWS, Ceph, MinIO, R2 and others.

Large files travel in parts, up by boto3's transfer manager. A read that breaks goes on where it was.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import BinaryIO, cast
from uuid import uuid4

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError
from typing_extensions import Buffer
from urllib3.exceptions import HTTPError

from data_specs import cache
from data_specs.ahead import in_threads
from data_specs.records import FileInfo
from data_specs.s3_client import TRIES, Answer, Head, Page, answer_of, backoff, client, object_arguments, plain_errors
from data_specs.storage import split_bucket

MULTIPART_FROM = 32 << 20  # bytes; files of this size go up, and come down, in parts of PART_BYTES
PART_BYTES = 16 << 20
THREADS = 8  # requests in flight for one file
_BLOCK = 1 << 20
_TAKEN = (304, 412)  # answers to a conditional write where there is an object of the name; they may have no body
_NO_CONDITIONS = 501
_TRY_AGAIN = (409, _NO_CONDITIONS, "NoSuchUpload")


# ---- reading -------------------------------------------------------------------------------------------------------
def read_bytes(uri: str, start: int | None = None, length: int | None = None) -> bytes:
    begin = start or 0
    return b"".join(_blocks(uri, begin, None if length is None else begin + length))


def open_stream(uri: str) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Stream(_blocks(uri)), _BLOCK))


def stat(uri: str) -> FileInfo | None:
    head = _head(uri)
    return head and FileInfo(uri, head["ContentLength"], head["ETag"].strip('"'))


def list_files(uri: str) -> Iterator[FileInfo]:
    bucket, key = split_bucket(uri)
    if key and not key.endswith("/") and (itself := stat(uri)):  # there may be a folder of the same name
        yield itself
    for page in _pages(uri):
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):
                yield FileInfo(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))


def list_folders(uri: str, linked: bool = False) -> list[str]:
    found = (entry["Prefix"] for page in _pages(uri, Delimiter="/") for entry in page.get("CommonPrefixes", []))
    return [f"s3://{split_bucket(uri)[0]}/{key[:-1]}" for key in found if not f"/{key}".endswith("//")]  # of run//x


def local_copy(uri: str, wait: Event | None = None) -> Path:
    if (info := stat(uri)) is None:
        raise FileNotFoundError(f"{uri}: no such object")
    key = f"{client().meta.endpoint_url} {info.uri} {info.etag}"
    return cache.local_copy(key, Path(uri).name, info.size, lambda path: _download(info, path), wait)


def _head(uri: str) -> Head | None:
    """Return the answer to a HEAD request, or None where there is no such object."""
    with suppress(FileNotFoundError), plain_errors(uri):
        head: Head = client().head_object(**object_arguments(uri))
        return head
    return None


def _pages(uri: str, **options: str) -> Iterator[Page]:
    """Pages of the listing of a folder."""
    bucket, key = split_bucket(uri)
    options |= {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/" if key else ""}
    pages = iter(client().get_paginator("list_objects_v2").paginate(**options))
    while True:
        with plain_errors(uri):
            page = next(pages, None)
        if page is None:
            return
        yield page


def _download(info: FileInfo, path: Path) -> None:
    """Write an object to a local file, a large one in parts at once; all of it is of the etag in `info`."""
    step = PART_BYTES if info.size >= MULTIPART_FROM else max(info.size, 1)

    def fetch(start: int) -> None:
        position = start
        for block in _blocks(info.uri, start, min(start + step, info.size), info.etag):
            position += os.pwrite(file.fileno(), block, position)
        if position != min(start + step, info.size):
            raise OSError(f"{info.uri}: ended early")

    with path.open("r+b" if path.exists() else "wb") as file:  # keeps the room that the cache reserved
        for _ in in_threads((partial(fetch, start) for start in range(0, info.size, step)), THREADS, 4 * THREADS):
            pass


def _blocks(uri: str, start: int = 0, stop: int | None = None, etag: str | None = None) -> Iterator[bytes]:
    """Yield an object's bytes from `start` to `stop`; interrupted answers are resumed until the end.

    botocore itself tries again only until an answer begins.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: the object is no longer that of the etag, or changes on the way.
    """
    attempt = 0
    while start != stop:
        try:
            if (answer := _get(uri, start, stop)) is None:
                return
            if etag not in (None, answer["ETag"]):
                raise OSError(f"{uri}: was replaced while it was read")
            etag = answer["ETag"]
            stop = start + answer["ContentLength"]
            with closing(answer["Body"]) as body:
                while block := body.read(_BLOCK):
                    yield block
                    start = start + len(block)
                    attempt = 0
        except (BotoCoreError, HTTPError) as error:
            attempt += 1
            if attempt == TRIES:
                raise ConnectionError(f"{uri}: the connection kept breaking at byte {start} ({error})") from None
            time.sleep(backoff(attempt))


def _get(uri: str, start: int, stop: int | None) -> Answer | None:
    """Return the answer to a request for a range, or None where the object ends before it begins."""
    wanted = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
    try:
        with plain_errors(uri, but=(416,)):
            answer: Answer = client().get_object(**object_arguments(uri), **wanted)
    except ClientError:
        return None
    return {**answer, "ETag": answer["ETag"].strip('"')}


class _Stream(io.RawIOBase):
    """Blocks of bytes as a file to read from start to end; the first is fetched at once."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.rest = next(blocks, b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        data = self.rest or next(self.blocks, b"")
        size = min(len(view), len(data))
        view[:size] = data[:size]
        self.rest = data[size:]
        return size


# ---- writing -------------------------------------------------------------------------------------------------------
def write(uri: str, content: bytes | Path) -> None:
    _write(uri, content, creates=False)


def create(uri: str, content: bytes | Path) -> bool:
    return _write(uri, content, creates=True)


def decides_who_creates(uri: str) -> bool:
    probe = f"{uri.rstrip('/')}/.dnd-probe-{uuid4().hex[:12]}"
    write(probe, b"")
    try:
        with plain_errors(probe, but=(*_TAKEN, *_TRY_AGAIN)):
            _upload(probe, b"", creates=True, mark="probe")
    except ClientError as error:
        return answer_of(error)[0] != _NO_CONDITIONS
    finally:
        with suppress(PermissionError):
            delete(probe)
    return False


def delete(uri: str) -> None:
    with plain_errors(uri):
        client().delete_object(**object_arguments(uri))


def _write(uri: str, content: bytes | Path, creates: bool) -> bool:
    """Write an object, if `creates` only where there is none yet; return whether ours is the one that stands there.

    A mark in its metadata tells our own earlier try, whose answer was lost, from another writer's object. A server that
    knows no such condition gets a look before the write instead: there the last of two simultaneous writers wins.
    """
    mark = uuid4().hex
    conditional = creates
    for attempt in range(TRIES):
        if creates and stat(uri):
            return False
        try:
            with plain_errors(uri, but=(*_TAKEN, *_TRY_AGAIN)):
                _upload(uri, content, conditional, mark)
            return True
        except FileExistsError:
            return False
        except ClientError as error:
            status = answer_of(error)[0]
            if (head := _head(uri)) and head["Metadata"].get("dnd-writer") == mark:
                return True
            if creates and status in _TAKEN:
                return False
            conditional = conditional and status != _NO_CONDITIONS
        time.sleep(backoff(attempt))
    raise OSError(f"{uri}: the server kept refusing, or other writers interfering; run again")


def _upload(uri: str, content: bytes | Path, creates: bool, mark: str) -> None:
    """Upload whole or not at all."""
    large = isinstance(content, Path) and content.stat().st_size >= MULTIPART_FROM
    config = TransferConfig(MULTIPART_FROM, THREADS, PART_BYTES, use_threads=large, preferred_transfer_client="classic")
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        extra = {"Metadata": {"dnd-writer": mark}}
        client(creates).upload_fileobj(file, **object_arguments(uri), ExtraArgs=extra, Config=config)
