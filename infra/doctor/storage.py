"""The root's storage: each right that a run needs is used once, on an object of our own; and the spec's sources."""

from __future__ import annotations

import email.utils
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from uuid import uuid4

from data_specs import storage
from data_specs.source import Source
from data_specs.spec import parse_spec
from infra.doctor import Finding

SKEW_SECONDS = 60  # S3 refuses requests at 15 minutes; receipts of a run are compared by their clocks


def storage_findings(root: str) -> Iterator[Finding]:
    """List, put if absent, get a range and delete under the root; the server's clock; the spec's remote sources."""
    if storage.is_remote(root):
        yield _clock()
    rights = list(_rights(root))
    yield from rights
    uri = storage.join(root, "spec.yaml")
    if not all(right.ok for right in rights) or not storage.exists(uri):
        return
    spec = parse_spec(storage.read_bytes(uri), uri)
    for source in spec.render.sources if spec.render else ():
        if storage.is_remote(source.address):
            yield _source(source)


def _rights(root: str) -> Iterator[Finding]:
    """In the order in which they are needed; what a missing one makes impossible is not tried."""
    uri = storage.join(root, f".doctor-{uuid4().hex[:12]}")
    data = b"dnd doctor"
    listed = _try("list", "s3:ListBucket", root, lambda: not list(storage.list_files(f"{uri}-none")))
    yield listed
    put = _try("put if absent", "s3:PutObject", root, lambda: storage.create(uri, data)) if listed.ok else None
    if not put or not put.ok:
        yield from [put] if put else []
        return
    yield put if storage.decides_who_creates(root) else put._replace(ok=False, text=_UNCONDITIONAL)
    yield _try("get a range", "s3:GetObject", root, lambda: storage.read_bytes(uri, 4, 6) == data[4:])
    yield _try("delete", "s3:DeleteObject", root, lambda: _gone(uri))


_UNCONDITIONAL = (
    "the storage does not refuse a second writer (S3: If-None-Match; a folder: hard links): two workers may commit one "
    "unit, and the last receipt holds; use one that does, or one node"
)


def _try(name: str, right: str, root: str, action: Callable[[], bool]) -> Finding:
    try:
        done = action()
    except (OSError, ValueError) as error:
        remedy = (
            f"; allow {right} under the root" if isinstance(error, PermissionError) and storage.is_remote(root) else ""
        )
        return Finding(name, False, f"{error}{remedy}")
    return Finding(name, done, root if done else f"{root}: the storage answered something else than was written")


def _gone(uri: str) -> bool:
    storage.delete(uri)
    return not storage.exists(uri)


def _clock() -> Finding:
    """Ours against the Date of any answer of the server, a refusal too."""
    from data_specs import s3_client

    endpoint = s3_client.client().meta.endpoint_url
    try:
        with urllib.request.urlopen(endpoint, timeout=10) as answer:  # noqa: S310
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]
    except OSError as error:
        return Finding("clock", False, f"{endpoint} does not answer ({error}): check AWS_ENDPOINT_URL and the network")
    skew = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    if abs(skew) > SKEW_SECONDS:
        return Finding("clock", False, f"{skew:+.0f} s from {endpoint}: synchronise it (timedatectl set-ntp true)")
    return Finding("clock", True, f"within {SKEW_SECONDS} s of {endpoint}")


def _source(source: Source) -> Finding:
    """One byte of a source: the manifest of arXiv's bucket, which the requester pays for, or the first file listed."""

    def readable() -> bool:
        first = source.probe_uri()
        if first is None:
            raise FileNotFoundError("there is no file here: correct render.sources")
        return len(storage.read_bytes(first, 0, 1)) == 1

    return _try(f"source {source.address}", "s3:GetObject", source.address, readable)
