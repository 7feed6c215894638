"""The S3 client of a process: its settings, when it tries again, and its errors in one plain line.

Credentials, region and endpoint (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) come from the usual AWS chain; none is logged.
DND_REQUESTER_PAYS lists buckets (with commas) whose requests are paid by us; `arxiv` always is one.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import boto3
from botocore.client import BaseClient
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

from data_specs.storage import split_bucket
from data_specs.text import one_line

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse
    from botocore.model import OperationModel
    from botocore.response import StreamingBody

TRIES = 14  # of a request: about a minute
WARN_AFTER = 8  # tries: about six seconds
_TRANSIENT = (429, 500, 502, 503, 504)
_TRANSIENT_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded")
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "400")
_clients: dict[tuple[object, ...], BaseClient] = {}
log = logging.getLogger(__name__)


class Head(TypedDict):
    """What a HEAD request is answered, as far as it is used."""

    ContentLength: int
    ETag: str
    Metadata: dict[str, str]


class Listed(TypedDict):
    """An object in a listing."""

    Key: str
    Size: int
    ETag: str


class Page(TypedDict, total=False):
    """A page of a listing."""

    Contents: list[Listed]
    CommonPrefixes: list[dict[str, str]]


class Answer(Head):
    """What a GET request is answered."""

    Body: StreamingBody


def client(creates: bool = False) -> BaseClient:
    """Return the process's pooled client, made at first use and anew after a fork, a change of AWS_* or a refusal.

    Args:
        creates: for the client whose writes all fail where there is an object of the name.
    """
    key = (creates, os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    made = _clients.get(key)
    return made or _clients.setdefault(key, _connect(creates))  # of two threads that connect at once, one's stays


def pays(bucket: str) -> bool:
    """Return whether our requests to this bucket carry the request-payer header."""
    named = os.environ.get("DND_REQUESTER_PAYS", "").split(",")
    return bucket != "" and bucket in ("arxiv", *(name.strip() for name in named))


def object_arguments(uri: str) -> dict[str, str]:
    """Return the bucket and key of an object, as boto3's arguments.

    Raises:
        ValueError: the URI names none.
    """
    bucket, key = split_bucket(uri)
    if not key:
        raise ValueError(f"{uri}: names a bucket, not a file; write s3://bucket/key")
    return {"Bucket": bucket, "Key": key}


def backoff(attempt: int) -> float:
    """Return the seconds to wait, with full jitter: up to 0.1, 0.2, … 20."""
    return random.random() * min(0.1 * 2.0**attempt, 20)


def answer_of(error: ClientError) -> tuple[int, str]:
    """Return the status and code of a refusal; an answer without a body has its status for a code."""
    response = error.response
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), str(response.get("Error", {}).get("Code", ""))


def _connect(creates: bool) -> BaseClient:
    """Make a client with retries; custom endpoints get path-style addresses and no optional checksums."""
    settings: dict[str, object] = {"max_pool_connections": 64, "connect_timeout": 10, "tcp_keepalive": True}
    ours = not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys()
    if ours:
        settings["retries"] = {"total_max_attempts": 1}
    with plain_errors("s3"):
        session = boto3.session.Session()
        made = session.client("s3", config=Config(**settings))
        if custom := ".amazonaws.com" not in made.meta.endpoint_url:
            settings["s3"] = {"addressing_style": "path"}
            if "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
                names = ("request_checksum_calculation", "response_checksum_validation")
                settings |= dict.fromkeys(names, "when_required")
            made = session.client("s3", config=Config(**settings))
    made.meta.events.register_last("before-parameter-build.s3", partial(_prepare, made, creates, custom))
    if ours:
        made.meta.events.register("needs-retry.s3", _seconds_until_retry)
    return made


def _prepare(
    made: BaseClient,
    creates: bool,
    custom: bool,
    params: dict[str, str],
    model: OperationModel,
    context: dict[str, dict[str, bool]],
    **_: object,
) -> None:
    """Add to a request who pays and what it depends on: a handler of botocore's event `before-parameter-build`."""
    if pays(params.get("Bucket", "")) and "RequestPayer" in model.input_shape.members:
        params["RequestPayer"] = "requester"
    if creates and model.name in ("PutObject", "CompleteMultipartUpload"):
        params["IfNoneMatch"] = "*"
        if model.name == "CompleteMultipartUpload":
            _refuse_if_there(made, params)
    if custom or model.name == "HeadBucket":  # botocore asks for the bucket's region, is redirected, asks …
        context["s3_redirect"]["redirected"] = True


def _refuse_if_there(made: BaseClient, params: dict[str, str]) -> None:
    """Look once more before an upload is completed: some servers heed the condition in PutObject only."""
    with suppress(ClientError):
        made.head_object(Bucket=params["Bucket"], Key=params["Key"])
        raise FileExistsError(params["Key"])


def _seconds_until_retry(
    response: tuple[AWSResponse, dict[str, dict[str, str]]] | None,
    operation: OperationModel,
    attempts: int,
    caught_exception: Exception | None,
    **_: object,
) -> float | None:
    """When a request that failed is sent again, None where it is not: a handler of botocore's event `needs-retry`.

    Its own modes end too soon for a bad hour: "standard" has a budget for retries which answers of 404 and 412,
    which are no faults of the server, never fill up again.
    """
    status = response[0].status_code if response else None
    code = response[1].get("Error", {}).get("Code", "") if response else ""
    broken = isinstance(caught_exception, (HTTPClientError, ConnectionFault))
    if attempts >= TRIES or not (broken or status in _TRANSIENT or code in _TRANSIENT_CODES):
        return None
    if attempts == WARN_AFTER:
        said = caught_exception or code or status
        log.warning("S3: %s failed %d times (%s), trying on", operation.name, attempts, said)
    return backoff(attempts - 1)


@contextmanager
def plain_errors(uri: str, but: tuple[str | int, ...] = ()) -> Iterator[None]:
    """Turn botocore's errors into built-in ones of one line, other than refusals of a status or code in `but`."""
    try:
        yield
    except ClientError as error:
        if not set(answer_of(error)).isdisjoint(but):
            raise
        raise _plain_error(uri, error) from None
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        remedy = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role gives them"
        raise ValueError(f"{uri}: no usable credentials ({error}): {remedy}") from None
    except BotoCoreError as error:
        raise ConnectionError(f"{uri}: {one_line(error)}") from None


def _plain_error(uri: str, error: ClientError) -> Exception:
    status, code = answer_of(error)
    if code == "NoSuchBucket":
        return ValueError(f"{uri}: there is no such bucket; create it or correct the URI")
    if status in (301, 302, 307, 308):
        there = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("location", "elsewhere")
        remedy = "set AWS_ENDPOINT_URL, or AWS_REGION, to where the bucket is"
        return ValueError(f"{uri}: the endpoint redirects to {there} (answer {status}): {remedy}")
    if status == 403 or code in _DENIED:
        _clients.clear()  # the next call reads the credentials anew, which may have been renewed
        remedy = "check AWS_PROFILE or AWS_ACCESS_KEY_ID and the bucket's policy, and renew what has expired"
        payer = "; if the requester pays there, name the bucket in DND_REQUESTER_PAYS"
        return PermissionError(f"{uri}: access denied ({code}): {remedy}{payer}")
    if status == 404:
        return FileNotFoundError(f"{uri}: no such object")
    return OSError(f"{uri}: the server answered {status} {code} to {error.operation_name}")
