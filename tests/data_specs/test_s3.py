"""The S3 backend: against moto in the ordinary tests, against Debian's Ceph gateway under the marker `s3`."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from PIL import Image
from s3_server import FAULTS, FaultProxy, Server

from data_specs import lease, manifest, receipts, s3, s3_client, storage
from data_specs.reader import open_shards
from data_specs.records import Dropped, Identity, Outcome, RangeUnit, Reason, Sample
from data_specs.s3_client import backoff
from data_specs.units import read_plan, write_plan
from data_specs.verify import find_shard_sets, verify_set

MIB = 1 << 20
servers = pytest.mark.parametrize("root", ["s3_root", pytest.param("ceph_root", marks=pytest.mark.s3)])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipart from 6 MiB on, in parts of 5 MiB, the least that S3 takes."""
    monkeypatch.setattr(s3, "MULTIPART_FROM", 6 * MIB)
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait a tenth of what they do; how often they try is the product's."""
    for module in (s3, s3_client):
        monkeypatch.setattr(module, "backoff", lambda attempt: backoff(attempt) / 10)


def random_file(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


@servers
def test_multipart_ranges_and_cached_download(
    root: str, small_parts: None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(root)
    file, uri = random_file(tmp_path / "file", 12 * MIB + 7), f"{root}/big"
    data = file.read_bytes()
    storage.write(uri, file)
    info = storage.stat(uri)
    assert info and info.size == len(data) and info.etag.endswith("-3")
    assert storage.read_bytes(uri, 5 * MIB - 3, 9) == data[5 * MIB - 3 : 5 * MIB + 6]
    assert storage.local_copy(uri).read_bytes() == data
    assert storage.local_copy(uri).stat().st_ino == storage.local_copy(uri).stat().st_ino
    assert storage.open_stream(uri).read() == data
    assert pending_uploads(root) == 0


def pending_uploads(root: str) -> int:
    answer = s3_client.client().list_multipart_uploads(Bucket=root.removeprefix("s3://"))
    return len(answer.get("Uploads", []))


@servers
def test_conditional_creation_of_small_and_large(
    root: str, small_parts: None, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = request.getfixturevalue(root)
    first, second = (random_file(tmp_path / str(seed), 7 * MIB, seed) for seed in (1, 2))
    assert storage.create(f"{root}/big", first)
    assert not storage.create(f"{root}/big", second)
    assert storage.create(f"{root}/small", b"first")
    monkeypatch.setattr(s3, "stat", lambda *_: None)  # the look before the write: without it, the server decides
    assert not storage.create(f"{root}/small", b"second")
    assert storage.read_bytes(f"{root}/small") == b"first"
    assert storage.read_bytes(f"{root}/big", 0, 9) == first.read_bytes()[:9]
    assert pending_uploads(root) == 0


@pytest.mark.s3
def test_one_of_many_creators_wins(ceph_root: str) -> None:
    """Not on moto, which looks and writes in two steps."""
    for number in range(5):
        uri = f"{ceph_root}/{number}"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i, uri=uri: storage.create(uri, b"%d" % i), range(8)))
        assert won.count(True) == 1
        assert storage.read_bytes(uri) == b"%d" % won.index(True)


@servers
def test_listing_of_ten_thousand_keys(
    root: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # eleven pages on either server
    names = [f"{i:05d}" for i in range(105 if root == "s3_root" else 10_005)]
    bucket, put = request.getfixturevalue(root).removeprefix("s3://"), s3_client.client().put_object
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(Bucket=bucket, Key=f"set/{name}", Body=b""), names))
    root = f"s3://{bucket}"
    assert [f.uri.rpartition("/")[2] for f in storage.list_files(f"{root}/set")] == names


@pytest.mark.s3
def test_requester_pays_and_other_users(
    ceph: Server, ceph_root: str, use_s3: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket, client = ceph_root.removeprefix("s3://"), s3_client.client()
    storage.write(f"{ceph_root}/x", b"data")
    client.put_object_acl(Bucket=bucket, Key="x", ACL="public-read")
    client.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    client.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration={"Payer": "Requester"})
    use_s3(ceph, ceph.other)
    for call in (storage.read_bytes, storage.stat, lambda uri: list(storage.list_files(uri))):
        with pytest.raises(PermissionError, match="DND_REQUESTER_PAYS"):
            call(f"{ceph_root}/x")
    with pytest.raises(PermissionError):
        storage.create(f"{ceph_root}/y", b"")
    monkeypatch.setenv("DND_REQUESTER_PAYS", f"other,{bucket}")
    assert storage.read_bytes(f"{ceph_root}/x", 1, 2) == b"at"
    assert [f.size for f in storage.list_files(ceph_root)] == [4]
    assert storage.local_copy(f"{ceph_root}/x").read_bytes() == b"data"
    monkeypatch.setattr(s3, "MULTIPART_FROM", 6 * MIB)
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    assert storage.create(f"{ceph_root}/big", random_file(tmp_path / "big", 7 * MIB))


@pytest.mark.s3
def test_wrong_secret_is_one_line_without_it(
    ceph: Server, ceph_root: str, use_s3: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    use_s3(ceph, ceph.owner._replace(secret="a-wrong-secret"))
    caplog.set_level(logging.INFO)
    with pytest.raises(PermissionError) as caught:
        storage.write(f"{ceph_root}/x", b"")
    assert "SignatureDoesNotMatch" in str(caught.value) and "AWS_PROFILE" in str(caught.value)
    assert "a-wrong-secret" not in str(caught.value) + caplog.text
    assert caught.value.__suppress_context__ and "\n" not in str(caught.value)


@pytest.mark.s3
def test_names_with_line_breaks(ceph_root: str) -> None:
    names = ["a\nb", "with space+%41", "ä"]
    for name in names:
        storage.write(f"{ceph_root}/set/{name}", name.encode())
    assert [f.uri.removeprefix(f"{ceph_root}/set/") for f in storage.list_files(f"{ceph_root}/set")] == names
    assert [storage.read_bytes(f"{ceph_root}/set/{name}").decode() for name in names] == names


def test_every_call_to_a_paying_bucket_says_so(
    s3_root: str, small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DND_REQUESTER_PAYS", s3_root.removeprefix("s3://"))
    sent: list[tuple[str, str | None]] = []

    def record(request: object, operation_name: str, **_: object) -> None:
        sent.append((operation_name, request.headers.get("x-amz-request-payer")))  # type: ignore[attr-defined]

    for creates in (False, True):
        s3_client.client(creates).meta.events.register("before-sign.s3", record)
    uri = f"{s3_root}/a"
    storage.create(uri, random_file(tmp_path / "file", 7 * MIB))
    storage.local_copy(uri)
    storage.create(f"{s3_root}/b", b"")
    storage.delete(uri)
    assert len(list(storage.list_files(s3_root))) == 1
    assert len({name for name, _ in sent}) == 8 and {value for _, value in sent} == {"requester"}, sent


def test_arxiv_always_pays() -> None:
    assert s3_client.pays("arxiv") and not s3_client.pays("arxiv-of-mine") and not s3_client.pays("")


def test_users_mistakes_are_one_line(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri, message in [
        ("s3://no-such-bucket-here/x", "no such bucket"),
        ("s3:///x", "names no bucket"),
        (s3_root, "names a bucket, not a file"),
    ]:
        with pytest.raises(ValueError, match=message):
            storage.write(uri, b"")
    with pytest.raises(ValueError, match="no such bucket"):
        list(storage.list_files("s3://no-such-bucket-here"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ValueError, match=r"credentials.*AWS_PROFILE"):
        storage.read_bytes(f"{s3_root}/x")
    for reader in (read_plan, lambda uri: receipts.discard(uri, 0)):  # what cannot be reached is not damaged
        with pytest.raises(ValueError, match=r"credentials[^;]*AWS_PROFILE[^;]*$"):
            reader(f"{s3_root}/run")
    monkeypatch.setenv("AWS_PROFILE", "not-configured")
    with pytest.raises(ValueError, match="not-configured"):
        storage.read_bytes(f"{s3_root}/x")


def test_unreachable_server_is_a_connection_error(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ConnectionError, match="localhost:9"):
        storage.read_bytes(f"{s3_root}/x")


# ---- other faces of S3 ---------------------------------------------------------------------------------------------
@contextmanager
def through(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Requests go to the proxy."""
    with proxy, monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code></Error>".encode()


@pytest.mark.parametrize("body", [b"", error("NotImplemented")])
def test_a_server_without_conditions_gets_a_look_before_the_write(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    def answer(method: str, headers: Message) -> tuple[int, dict[str, str], bytes] | None:
        return (501, {}, body) if "If-None-Match" in headers else None

    with through(FaultProxy(os.environ["AWS_ENDPOINT_URL"], answer=answer), monkeypatch):
        assert not storage.decides_who_creates(s3_root)
        assert storage.create(f"{s3_root}/x", b"first")
        assert not storage.create(f"{s3_root}/x", b"second")
    assert storage.read_bytes(f"{s3_root}/x") == b"first"
    assert len(list(storage.list_files(s3_root))) == 1


@pytest.mark.parametrize(("status", "created"), [(409, True), (412, False), (304, False)])
@pytest.mark.parametrize("body", [b"", error("Odd")])
def test_answers_to_a_conditional_write_count_by_their_status(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, status: int, created: bool, body: bytes
) -> None:
    """409, two writers at once, is tried again; 412, or 304 from some proxies, means that another was first."""
    answers = [(status, {}, b"" if status == 304 else body)]

    def answer(method: str, headers: Message) -> tuple[int, dict[str, str], bytes] | None:
        return answers.pop() if "If-None-Match" in headers and answers else None

    with through(FaultProxy(os.environ["AWS_ENDPOINT_URL"], answer=answer), monkeypatch):
        assert storage.create(f"{s3_root}/x", b"data") == created
    assert storage.exists(f"{s3_root}/x") == created


@servers
def test_whether_the_storage_decides_who_creates(root: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(root)
    assert storage.decides_who_creates(f"{root}/run")
    assert list(storage.list_files(root)) == []


def test_where_conditions_are_ignored_two_jobs_still_make_one_whole_set(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ignore(method: str, headers: Message) -> None:
        del headers["If-None-Match"]

    with through(FaultProxy(os.environ["AWS_ENDPOINT_URL"], answer=ignore), monkeypatch), ThreadPoolExecutor(2) as pool:
        with lease.hold(s3_root, "dnd render"):
            assert "refuses no second writer" in caplog.text
        list(pool.map(partial(make_set, units=4), [f"{s3_root}/set"] * 2))
        assert list(verify_set(f"{s3_root}/set")) == []
    make_set(str(tmp_path / "set"), units=4)
    assert storage.read_bytes(f"{s3_root}/set/manifest.json") == (tmp_path / "set" / "manifest.json").read_bytes()


@pytest.mark.parametrize("status", [301, 307])
def test_an_endpoint_that_redirects_is_named(s3_root: str, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    def answer(method: str, headers: Message) -> tuple[int, dict[str, str], bytes]:
        return status, {"Location": "https://elsewhere.example"}, b""

    calls = [storage.stat, storage.read_bytes, lambda uri: list(storage.list_files(uri)), storage.delete]
    with through(FaultProxy(os.environ["AWS_ENDPOINT_URL"], answer=answer), monkeypatch):
        for call in (*calls, lambda uri: storage.write(uri, b""), lambda uri: storage.create(uri, b"")):
            with pytest.raises(ValueError, match=r"redirects to https://elsewhere.example .*AWS_ENDPOINT_URL"):
                call(f"{s3_root}/x")


def test_credentials_that_expire_and_are_renewed(s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job goes on with what stands in the credentials' file now."""

    def answer(method: str, headers: Message) -> tuple[int, dict[str, str], bytes] | None:
        expired = "Credential=old/" in headers["Authorization"]
        return (400, {}, b"" if method == "HEAD" else error("ExpiredToken")) if expired else None

    file = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with through(FaultProxy(os.environ["AWS_ENDPOINT_URL"], answer=answer), monkeypatch):
        file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = secret\n")
        for call in (storage.stat, storage.read_bytes, lambda uri: storage.create(uri, b"")):
            with pytest.raises(PermissionError, match="renew what has expired"):
                call(f"{s3_root}/x")
        file.write_text(file.read_text().replace("old", "new"))
        assert storage.create(f"{s3_root}/x", b"data") and storage.read_bytes(f"{s3_root}/x") == b"data"


@servers
def test_versioned_buckets(root: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(root)
    s3_client.client().put_bucket_versioning(
        Bucket=root.removeprefix("s3://"), VersioningConfiguration={"Status": "Enabled"}
    )
    for data in (b"first", b"second"):
        assert storage.create(f"{root}/x", data)
        assert not storage.create(f"{root}/x", b"other")
        storage.write(f"{root}/x", data * 2)
        assert storage.read_bytes(f"{root}/x") == storage.local_copy(f"{root}/x").read_bytes() == data * 2
        assert [file.size for file in storage.list_files(root)] == [2 * len(data)]
        storage.delete(f"{root}/x")
        assert not storage.exists(f"{root}/x") and list(storage.list_files(root)) == []


@servers
def test_an_object_named_as_a_folder_hides_nothing_of_it(root: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(root)
    names = ["set", "set/", "set/000000.json", "set/a/b", "set0"]
    for name in names:
        s3_client.client().put_object(Bucket=root.removeprefix("s3://"), Key=name, Body=b"")
    assert [f.uri.removeprefix(f"{root}/") for f in storage.list_files(f"{root}/set")] == ["set", *names[2:4]]
    assert storage.list_folders(root) == [f"{root}/set"] and storage.list_folders(f"{root}/set") == [f"{root}/set/a"]


def test_a_folder_without_a_name_is_none(s3_root: str) -> None:
    for key in ("/top", "run//x", "run/a//b", "run/a/c"):
        s3_client.client().put_object(Bucket=s3_root.removeprefix("s3://"), Key=key, Body=b"")
    assert storage.list_folders(s3_root) == [f"{s3_root}/run"]
    assert storage.list_folders(f"{s3_root}/run") == [f"{s3_root}/run/a"]
    assert find_shard_sets(s3_root) == []  # without end before


def test_a_failed_upload_leaves_nothing(
    s3_root: str, small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    file, endpoint = random_file(tmp_path / "file", 12 * MIB), os.environ["AWS_ENDPOINT_URL"]
    with FaultProxy(endpoint, 1.0, kinds=("cut upload",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for write in (storage.write, storage.create):
            with pytest.raises(OSError):
                write(f"{s3_root}/x", file)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert proxy.made["cut upload"] > 0
    assert list(storage.list_files(s3_root)) == [] and pending_uploads(s3_root) == 0


def test_an_object_replaced_while_read_is_an_error(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(f"{s3_root}/x", bytes(9 * MIB))
    with through(FaultProxy(os.environ["AWS_ENDPOINT_URL"], 1.0, kinds=("cut download",)), monkeypatch):
        stream = storage.open_stream(f"{s3_root}/x")
    storage.write(f"{s3_root}/x", bytes(10 * MIB))
    with pytest.raises(OSError, match="replaced while it was read"):
        stream.read()


def _read_in_child(uri: str) -> None:
    os._exit(0 if storage.read_bytes(uri) == b"data" else 1)


def test_a_forked_child_has_its_own_client(s3_root: str) -> None:
    storage.write(f"{s3_root}/x", b"data")
    parent = s3_client.client()
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(f"{s3_root}/x",))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert s3_client.client() is parent


def test_plain_client_error_codes_pass_where_wanted() -> None:
    with pytest.raises(ClientError), s3_client.plain_errors("s3://a/b", but=("Odd",)):
        raise ClientError({"Error": {"Code": "Odd"}}, "PutObject")
    with pytest.raises(OSError, match="answered 503 SlowDown to PutObject"), s3_client.plain_errors("s3://a/b"):
        raise ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject")


# ---- faults --------------------------------------------------------------------------------------------------------
@servers
def test_streams_survive_cut_connections(
    root: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = request.getfixturevalue(root)
    text = "".join(f"line {i} {'x' * (i % 97)}\n" for i in range(60_000))
    storage.write_text(f"{root}/lines", text)
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], 0.6, kinds=("cut download", "reset")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert list(io.TextIOWrapper(storage.open_stream(f"{root}/lines"))) == text.splitlines(keepends=True)
        assert storage.local_copy(f"{root}/lines").read_text() == text
        assert storage.read_text(f"{root}/lines") == text
    assert proxy.made["cut download"] > 2


def test_a_bad_hour_uses_up_no_budget(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's own modes stop after 100 retries of questions that are rightly answered by 404."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], 0.35, kinds=("503", "lost answer")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(storage.stat, [f"{s3_root}/nothing"] * 300)) == {None}
    assert sum(proxy.made.values()) > 120


@pytest.mark.slow
@servers
def test_a_shard_set_written_through_faults_equals_a_local_one(
    root: str, small_parts: None, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = f"{request.getfixturevalue(root)}/set"
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with FaultProxy(endpoint, 0.2, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        make_set(remote)
        assert list(verify_set(remote)) == []
        assert [item["cls"] for item in open_shards(remote)] == [unit for unit in range(8) for _ in range(3)]
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert set(proxy.made) == set(FAULTS), proxy.made
    make_set(str(tmp_path / "set"))
    for file in storage.list_files(remote):
        name = file.uri.removeprefix(f"{remote}/")
        if not name.removesuffix(".json").isdigit():  # receipts carry times
            assert storage.read_bytes(file.uri) == (tmp_path / "set" / name).read_bytes(), name
    assert names(remote) == names(str(tmp_path / "set"))


def names(set_uri: str) -> list[str]:
    return [file.uri.removeprefix(f"{set_uri}/") for file in storage.list_files(set_uri)]


def make_set(set_uri: str, units: int = 8) -> None:
    """Units of three images, the fifth larger than a part; written by four threads, as by four workers."""
    numbers = range(units)
    planned = [RangeUnit(unit=number, first=number, count=1) for number in numbers]
    plan = write_plan(set_uri, "d" * 64, Identity(stage="test"), planned)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: receipts.commit(set_uri, plan.digest, number, outcomes(number)), numbers))
    manifest.merge(plan, "images")


def outcomes(unit: int) -> list[Outcome]:
    png = io.BytesIO()
    Image.new("RGB", (8, 8), (unit, 0, 0)).save(png, "png")
    note = random.Random(unit).randbytes(7 * MIB if unit == 5 else 10).hex()
    samples = [
        Sample(f"{unit}-{i}", {"png": png.getvalue(), "cls": b"%d" % unit, "json": b'{"note": "%s"}' % note.encode()})
        for i in range(3)
    ]
    return [*samples, Dropped(f"{unit}-3", "source", Reason.BLANK)]
