"""The S3 half of storage: `s3://bucket/key` over boto3, on AWS, Ceph, MinIO, R2 and the like.

Credentials, region and endpoint (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) come from the usual AWS chain; none is logged.
DND_REQUESTER_PAYS lists buckets (with commas) whose requests are paid by us; `arxiv` always is one.
"""

from __future__ import annotations

import io
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as ConnectionFault
from urllib3.exceptions import HTTPError

from data_specs import cache
from data_specs.storage import FileInfo

MULTIPART_ABOVE = 32 << 20  # bytes; a larger file goes up, and comes down, in parts of PART_BYTES
PART_BYTES = 16 << 20
THREADS = 8  # requests in flight for one file
TRIES = 14  # of a request: about a minute
WARN_AFTER = 8  # tries: about six seconds
_BLOCK = 1 << 20
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_TRANSIENT_STATUS = (429, 500, 502, 503, 504)
_TRANSIENT_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded")
_CONDITION_FAILED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchUpload", "NotImplemented")
_clients: dict[tuple[Any, ...], Any] = {}
_Made = TypeVar("_Made")
log = logging.getLogger(__name__)


def backend() -> _S3:
    """The S3 backend of the process; its pooled client is made at first use, anew after a fork or a change of AWS_*."""
    key = (os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    if key not in _clients:
        _clients.setdefault(key, _connect())  # of two threads that connect at once, one's client stays
    return _S3(_clients[key])


def pays(bucket: str) -> bool:
    """Whether our requests to this bucket carry the request-payer header."""
    named = os.environ.get("DND_REQUESTER_PAYS", "").split(",")
    return bucket != "" and bucket in ("arxiv", *(name.strip() for name in named))


def _connect() -> Any:
    """A client with retries; custom endpoints get path-style addresses and no checksums beyond what they must have."""
    settings: dict[str, Any] = {"max_pool_connections": 64, "connect_timeout": 10, "tcp_keepalive": True}
    ours = not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys()
    if ours:
        settings["retries"] = {"total_max_attempts": 1}
    with _plain_errors("s3"):
        session = boto3.session.Session()
        client = session.client("s3", config=Config(**settings))
        if ".amazonaws.com" not in client.meta.endpoint_url:
            settings["s3"] = {"addressing_style": "path"}
            if "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
                names = ("request_checksum_calculation", "response_checksum_validation")
                settings |= dict.fromkeys(names, "when_required")
            client = session.client("s3", config=Config(**settings))
    client.meta.events.register("provide-client-params.s3", _add_payer)
    if ours:
        client.meta.events.register("needs-retry.s3", _seconds_until_retry)
    return client


def _seconds_until_retry(
    response: Any, operation: Any, attempts: int, caught_exception: Exception | None, **_: Any
) -> float | None:
    """When a request that failed is sent again, None where it is not: a handler of botocore's event `needs-retry`.

    Its own modes end too soon for a bad hour: "standard" has a budget for retries which answers of 404 and 412, that
    are none of the server's faults, never fill up again.
    """
    status = response[0].status_code if response else None
    code = response[1].get("Error", {}).get("Code", "") if response else ""
    broken = isinstance(caught_exception, (HTTPClientError, ConnectionFault))
    if attempts >= TRIES or not (broken or status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES):
        return None
    if attempts == WARN_AFTER:
        log.warning(
            "S3: %s failed %d times (%s), trying on", operation.name, attempts, caught_exception or code or status
        )
    return _backoff(attempts - 1)


def _add_payer(params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any] | None:
    if pays(params.get("Bucket", "")) and "RequestPayer" in model.input_shape.members:
        return {**params, "RequestPayer": "requester"}
    return None


class _S3:
    """Backend of `data_specs.storage` for one client."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def read_bytes(self, uri: str, start: int | None, length: int | None) -> bytes:
        begin = start or 0
        with _Body(self.client, uri, begin, None if length is None else begin + length) as body:
            return body.readall()

    def open_stream(self, uri: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_Body(self.client, uri), _BLOCK))

    def write_bytes(self, uri: str, data: bytes) -> None:
        with _plain_errors(uri):
            self._put(uri, data, {})

    def write_file(self, path: Path, uri: str) -> None:
        mark = _mark()
        try:
            with _plain_errors(uri, but=("NoSuchUpload",)):
                self._upload(path, uri, mark)
        except ClientError:  # what is left of an upload whose completion was sent twice, if it is ours
            if not self._is_mark(uri, mark):
                raise ConnectionError(f"{uri}: the server lost the upload; run again") from None

    def create_if_absent(self, uri: str, data: bytes) -> bool:
        return self._create(uri, lambda extra: self._put(uri, data, extra))

    def create_from_file(self, path: Path, uri: str) -> bool:
        return self._create(uri, lambda extra: self._upload(path, uri, extra))

    def _create(self, uri: str, upload: Callable[[dict[str, Any]], bool]) -> bool:
        """Uploads on condition that there is no such object; True if ours is the one that stands there.

        A mark in the object's metadata tells our own earlier try, whose answer was lost, from another writer's object.
        A server that refuses the condition as not implemented gets a look before the write instead: there the last
        of two simultaneous writers wins.
        """
        mark, condition = _mark(), {"IfNoneMatch": "*"}
        for attempt in range(TRIES):
            if self.stat(uri):
                return False
            try:
                with _plain_errors(uri, but=_CONDITION_FAILED):
                    return upload(mark | condition)
            except ClientError as error:
                if self._is_mark(uri, mark):
                    return True
                if _code(error) == "PreconditionFailed":
                    return False
                condition = {} if _code(error) == "NotImplemented" else condition
            _wait(attempt)
        raise OSError(f"{uri}: other writers kept interfering; run again")

    def _is_mark(self, uri: str, mark: dict[str, Any]) -> bool:
        head = self._head(uri)
        return head is not None and head["Metadata"] == mark["Metadata"]

    def _upload(self, path: Path, uri: str, extra: dict[str, Any]) -> bool:
        if path.stat().st_size > MULTIPART_ABOVE:
            return self._upload_parts(path, uri, extra)
        with path.open("rb") as file:
            return self._put(uri, file, extra)

    def _put(self, uri: str, body: bytes | BinaryIO, extra: dict[str, Any]) -> bool:
        self.client.put_object(**_address(uri), Body=body, **extra)
        return True

    def _upload_parts(self, path: Path, uri: str, extra: dict[str, Any]) -> bool:
        """A multipart upload, completed whole (on the condition in `extra`) or aborted; False if it was too late."""
        condition = {key: value for key, value in extra.items() if key == "IfNoneMatch"}
        metadata = {key: value for key, value in extra.items() if key == "Metadata"}
        started = self.client.create_multipart_upload(**_address(uri), **metadata)
        upload = _address(uri) | {"UploadId": started["UploadId"]}
        try:
            parts = _in_threads(lambda span: self._upload_part(path, upload, span), _spans(path.stat().st_size))
            if condition and self.stat(uri):  # some servers heed the condition in put_object only
                self._abort(upload)
                return False
            self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
        except BaseException:
            self._abort(upload)
            raise
        return True

    def _upload_part(self, path: Path, upload: dict[str, Any], span: tuple[int, int]) -> dict[str, Any]:
        start, stop = span
        number = start // PART_BYTES + 1
        with path.open("rb") as file:
            file.seek(start)
            done = self.client.upload_part(**upload, PartNumber=number, Body=file.read(stop - start))
        checksums = {key: value for key, value in done.items() if key.startswith("Checksum") and key != "ChecksumType"}
        return {"PartNumber": number, "ETag": done["ETag"], **checksums}

    def _abort(self, upload: dict[str, Any]) -> None:
        with suppress(ClientError, BotoCoreError):  # gone or out of reach: the error that led here is the one to tell
            self.client.abort_multipart_upload(**upload)

    def list_files(self, uri: str) -> Iterator[FileInfo]:
        bucket, key = _split(uri)
        itself = self.stat(uri) if key and not key.endswith("/") else None
        if itself:
            yield itself
            return
        for page in self._pages(uri):
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield FileInfo(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))

    def list_folders(self, uri: str) -> list[str]:
        bucket, prefixes = _split(uri)[0], (page.get("CommonPrefixes", []) for page in self._pages(uri, Delimiter="/"))
        return [f"s3://{bucket}/{entry['Prefix'].rstrip('/')}" for page in prefixes for entry in page]

    def _pages(self, uri: str, **options: str) -> Iterator[Any]:
        """Pages of the listing of a folder."""
        bucket, key = _split(uri)
        options |= {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/" if key else ""}
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(**options))
        while True:
            with _plain_errors(uri):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def stat(self, uri: str) -> FileInfo | None:
        head = self._head(uri)
        return head and FileInfo(uri, head["ContentLength"], head["ETag"].strip('"'))

    def _head(self, uri: str) -> Any:
        """The answer to a HEAD request, or None where there is no such object."""
        try:
            with _plain_errors(uri):
                return self.client.head_object(**_address(uri))
        except FileNotFoundError:
            return None

    def delete(self, uri: str) -> None:
        with _plain_errors(uri):
            self.client.delete_object(**_address(uri))

    def local_copy(self, uri: str) -> Path:
        info = self.stat(uri)
        if info is None:
            raise FileNotFoundError(f"{uri}: no such object")
        key = f"{self.client.meta.endpoint_url} {info.uri} {info.etag}"
        return cache.local_copy(key, Path(uri).name, info.size, lambda path: self._download(info, path))

    def _download(self, info: FileInfo, path: Path) -> None:
        """Writes an object to a local file, large ones in parts at once; all of it is of the etag in `info`."""

        def fetch(span: tuple[int, int]) -> None:
            position = span[0]
            with _Body(self.client, info.uri, *span, etag=info.etag) as body:
                while block := body.read(_BLOCK):
                    position += os.pwrite(file.fileno(), block, position)

        with path.open("wb") as file:
            _in_threads(fetch, _spans(info.size))


class _Body(io.RawIOBase):
    """An object's bytes from `start` to `stop`; after a broken connection it goes on where it was, by a ranged read.

    Raises FileNotFoundError, or OSError if the object changes on the way.
    """

    def __init__(self, client: Any, uri: str, start: int = 0, stop: int | None = None, etag: str | None = None) -> None:
        self.client, self.uri, self.position, self.stop, self.etag = client, uri, start, stop, etag
        self.end: int | None = start if start == stop else None  # known after the first answer
        self.body: Any = None
        if self.end is None:
            self._again(self._connect)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.position == self.end:
            return 0
        data = self._again(lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _again(self, work: Callable[[], _Made]) -> _Made:
        """What work() makes, on a new connection where one breaks: botocore tries again only until an answer begins."""
        for attempt in range(TRIES):
            try:
                return work()
            except (BotoCoreError, HTTPError) as error:
                self._disconnect()
                broken = error
                _wait(attempt)
        raise ConnectionError(f"{self.uri}: the connection kept breaking at byte {self.position} ({broken})")

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(_BLOCK), b""))

    def _read(self, size: int) -> bytes:
        if self.body is None:
            self._connect()
        data = self.body.read(size) if self.position != self.end else b""
        if not data and self.position != self.end:
            raise BotoCoreError()
        return data

    def _connect(self) -> None:
        try:
            with _plain_errors(self.uri, but=("InvalidRange",)):
                answer = self.client.get_object(**_address(self.uri), **self._range())
        except ClientError:  # the object ends before `start`
            self.end = self.position
            return
        etag = answer["ETag"].strip('"')
        if self.etag not in (None, etag):
            raise OSError(f"{self.uri}: was replaced while it was read")
        self.etag, self.body, self.end = etag, answer["Body"], self.position + answer["ContentLength"]

    def _range(self) -> dict[str, str]:
        if not self.position and self.stop is None:
            return {}
        return {"Range": f"bytes={self.position}-{'' if self.stop is None else self.stop - 1}"}

    def _disconnect(self) -> None:
        if self.body is not None:
            self.body.close()
            self.body = None

    def close(self) -> None:
        self._disconnect()
        super().close()


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{uri}: names no bucket; write s3://bucket/key")
    return bucket, key


def _address(uri: str) -> dict[str, str]:
    bucket, key = _split(uri)
    if not key:
        raise ValueError(f"{uri}: names a bucket, not a file; write s3://bucket/key")
    return {"Bucket": bucket, "Key": key}


def _mark() -> dict[str, Any]:
    """Metadata by which a writer knows its own object again."""
    return {"Metadata": {"dnd-writer": uuid4().hex}}


def _spans(size: int) -> list[tuple[int, int]]:
    """(first byte, byte after the last) of the parts in which a file travels."""
    step = PART_BYTES if size > MULTIPART_ABOVE else max(size, 1)
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def _in_threads(work: Callable[[tuple[int, int]], Any], spans: list[tuple[int, int]]) -> list[Any]:
    if len(spans) < 2:
        return [work(span) for span in spans]
    pool = ThreadPoolExecutor(THREADS)
    try:
        return list(pool.map(work, spans))
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(attempt: int) -> None:
    time.sleep(_backoff(attempt))


def _backoff(attempt: int) -> float:
    """Seconds to wait, with full jitter: up to 0.1, 0.2, … 20."""
    return random.random() * min(0.1 * 2**attempt, 20)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _plain_errors(uri: str, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Turns botocore's errors into built-in ones of one line, other than client errors of the codes in `but`."""
    try:
        yield
    except ClientError as error:
        if _code(error) in but:
            raise
        raise _plain_error(uri, error) from None
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        remedy = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role gives them"
        raise ValueError(f"{uri}: no usable credentials ({error}): {remedy}") from None
    except BotoCoreError as error:
        raise ConnectionError(f"{uri}: {' '.join(str(error).split())}") from None


def _plain_error(uri: str, error: ClientError) -> Exception:
    status, code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"), _code(error)
    if code == "NoSuchBucket":
        return ValueError(f"{uri}: there is no such bucket; create it or correct the URI")
    if status == 403 or code in _DENIED:
        remedy = "check AWS_PROFILE or AWS_ACCESS_KEY_ID and the bucket's policy"
        payer = "; if the requester pays there, name the bucket in DND_REQUESTER_PAYS"
        return PermissionError(f"{uri}: access denied ({code}): {remedy}{payer}")
    if status == 404:
        return FileNotFoundError(f"{uri}: no such object")
    return OSError(f"{uri}: the server answered {status} {code} to {error.operation_name}")
