"""The root's storage: each right that a run needs is used once, on an object of our own; and the spec's sources."""

from __future__ import annotations

import email.utils
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from uuid import uuid4

from botocore.exceptions import ClientError

from data_specs import storage
from data_specs.spec import ArxivSource, Source, parse_spec
from infra.doctor.finding import Finding

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
    spec = parse_spec(storage.read_text(uri), uri)
    for source in spec.render.sources if spec.render else ():
        if storage.is_remote(getattr(source, "uri", "")):
            yield _source(source)


def _rights(root: str) -> Iterator[Finding]:
    """In the order in which they are needed; what a missing one makes impossible is not tried."""
    uri, data = storage.join(root, f".doctor-{uuid4().hex[:12]}"), b"dnd doctor"
    listed = _try("list", "s3:ListBucket", root, lambda: not list(storage.list_files(f"{uri}-none")))
    yield listed
    put = (
        _try("put if absent", "s3:PutObject", root, lambda: storage.create_if_absent(uri, data)) if listed.ok else None
    )
    if not put or not put.ok:
        yield from [put] if put else []
        return
    yield put if _refuses_second(uri) else put._replace(ok=False, text=_UNCONDITIONAL)
    yield _try("get a range", "s3:GetObject", root, lambda: storage.read_bytes(uri, 4, 6) == data[4:])
    yield _try("delete", "s3:DeleteObject", root, lambda: _gone(uri))


_UNCONDITIONAL = "the server ignores If-None-Match: two workers may commit one unit; use a server that heeds it"


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


def _refuses_second(uri: str) -> bool:
    """Whether the server itself, and not our look before, keeps a second writer from replacing the first's object."""
    if not storage.is_remote(uri):
        return not storage.create_if_absent(uri, b"second")
    from data_specs import s3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        s3.backend().client.put_object(Bucket=bucket, Key=key, Body=b"dnd doctor", IfNoneMatch="*")
    except ClientError:
        return True
    return False


def _clock() -> Finding:
    """Ours against the Date of any answer of the server, a refusal too."""
    from data_specs import s3

    endpoint = s3.backend().client.meta.endpoint_url
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
    uri = str(source.uri)  # type: ignore[union-attr]

    def readable() -> bool:
        first = storage.join(uri, "pdf/arXiv_pdf_manifest.xml")
        if not isinstance(source, ArxivSource):
            first = next(file.uri for file in storage.list_files(uri) if file.size)
        return len(storage.read_bytes(first, 0, 1)) == 1

    try:
        return _try(f"source {uri}", "s3:GetObject", uri, readable)
    except StopIteration:
        return Finding(f"source {uri}", False, "there is no file here: correct render.sources")
