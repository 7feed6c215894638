"""`dnd doctor`: every fault that it knows is made to happen, and is found and told in one line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import s3_server
from slurm_cluster import Slurm, missing_binaries, slurm_cluster

from data_specs import s3_client, storage
from data_specs.spec import load_spec
from infra.doctor import Finding, gpus, machine
from infra.doctor.clusters import ray_finding, slurm_finding
from infra.doctor.storage import storage_findings

DOCTOR = (sys.executable, "-m", "infra.cli", "doctor")


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def in_namespace(setup: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where `setup`, a line of shell, has changed the mounts; skips where mounting is not allowed."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not change mounts here: needs root")
    command = ["unshare", "--mount", "bash", "-ec", f'{setup}; exec "$@"', "bash", *DOCTOR, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


# ---- the machine -----------------------------------------------------------------------------------------------------
def test_everything_wrong_with_one_machine_is_found(tmp_path: Path) -> None:
    """A GPU's device node beside a CPU build of torch, a full disk, 1 MiB of shared memory, 512 open files."""
    setup = (
        f"mkdir {tmp_path}/dev {tmp_path}/full; mount -t tmpfs -o size=512k tmpfs {tmp_path}/full; "
        f"for name in null zero urandom random tty; do touch {tmp_path}/dev/$name; "
        f"mount --bind /dev/$name {tmp_path}/dev/$name; done; mkdir {tmp_path}/dev/shm; "
        f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/dev/shm; mknod {tmp_path}/dev/nvidia0 c 195 0; "
        f"mount --rbind {tmp_path}/dev /dev; ulimit -n 512; export TMPDIR={tmp_path}/full DND_CACHE={tmp_path}/cache "
        "NCCL_SOCKET_IFNAME=ib7"
    )
    done = in_namespace(setup)
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "is a CPU build on a machine with 1 GPUs: pip install torch==" in lines["BAD  torch"]
    assert "No space left on device" in lines["BAD  disk of temporary files"] and "TMPDIR" in done.stdout
    assert "1 MiB at /dev/shm" in lines["BAD  shared memory"]
    assert lines["BAD  open files"].startswith("BAD  open files: 512: ulimit -n")


def test_a_cpu_build_of_torch_is_wrong_only_beside_gpus(tmp_path: Path) -> None:
    import torch

    if torch.version.cuda:
        pytest.skip("this is a CUDA build of torch")
    assert all(finding.ok for finding in gpus.gpu_findings(tmp_path))
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    (finding,) = gpus.gpu_findings(tmp_path)
    assert not finding.ok and "CPU build on a machine with 2 GPUs" in finding.text and "--index-url" in finding.text


def test_a_driver_that_is_too_old_for_the_build_is_named(tmp_path: Path) -> None:
    version = "NVRM version: NVIDIA UNIX {} Kernel Module  {}  Thu Oct  2 2025\n"
    for name, line in {"open": ("Open", "for x86_64  570.86.15"), "closed": ("x86_64", "580.95.05")}.items():
        (tmp_path / name).write_text(version.format(*line))
    old, new = (gpus.driver_version(tmp_path / name) for name in ("open", "closed"))
    assert (old, new) == ("570.86.15", "580.95.05") and gpus.driver_version(tmp_path / "none") is None
    assert gpus.too_old(str(new), "13.0") is None and gpus.too_old(str(old), "12.8") is None
    complaint = gpus.too_old(str(old), "13.0")
    assert complaint and "update it to 580 or newer, or install a build of torch for CUDA 12" in complaint


def test_a_fabric_whose_library_does_not_load_is_named(tmp_path: Path) -> None:
    assert list(gpus.fabric_findings(tmp_path / "none")) == []
    (tmp_path / "mlx5_0").mkdir()
    assert [finding.ok for finding in gpus.fabric_findings(tmp_path, verbs="libc.so.6")] == [True]
    (tmp_path / "rdmap0s6").mkdir()  # an Elastic Fabric Adapter
    (finding,) = gpus.fabric_findings(tmp_path, verbs="libc.so.6", plugin="libnone.so")
    assert not finding.ok and "mlx5_0, rdmap0s6, but libnone.so does not load" in finding.text
    (finding,) = gpus.fabric_findings(tmp_path, verbs="libnone.so.1")
    assert "apt-get install libibverbs1" in finding.text


def test_a_network_for_nccl_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, ok in (("ib7", False), ("lo", True), ("=ib7,lo", True), ("^docker", True)):
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
        assert by_name(gpus.gpu_findings(tmp_path))["nccl"].ok is ok, value


def test_a_package_of_another_version_than_the_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pillow-9.0.0.dist-info").mkdir()
    (tmp_path / "pillow-9.0.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 9.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = machine._packages()
    assert not finding.ok and "pillow 9.0.0 (locked: " in finding.text and "requirements.lock" in finding.text


def test_too_little_room_is_told_before_it_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._disk("cache", tmp_path / "to" / "be" / "made").ok
    monkeypatch.setattr(machine, "FREE_BYTES", 2**60)
    finding = machine._disk("cache", tmp_path)
    assert not finding.ok and "GiB free of the" in finding.text and "DND_CACHE" in finding.text


def test_a_quota_shows_where_the_free_space_does_not(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        finding = machine._disk("temporary files", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not finding.ok and "File too large" in finding.text


# ---- S3 --------------------------------------------------------------------------------------------------------------
def test_a_root_with_all_rights_is_left_as_it_was(s3_root: str) -> None:
    found = by_name(storage_findings(f"{s3_root}/run"))
    assert set(found) == {"clock", "list", "put if absent", "get a range", "delete"}
    assert all(finding.ok for finding in found.values()), found
    assert list(storage.list_files(s3_root)) == []


def test_a_bucket_that_is_not_there_is_named(s3_root: str) -> None:
    found = by_name(storage_findings("s3://no-such-bucket-here/run"))
    assert not found["list"].ok and "no such bucket" in found["list"].text and set(found) == {"clock", "list"}


@contextmanager
def answering(answers: dict[str, tuple[int, bytes]], date: str | None = None) -> Iterator[str]:
    """Address of an HTTP server that answers `METHOD /path` so, and 404 to the rest, with a Date of its own."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(f"{self.command} {self.path.partition('?')[0]}", (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = _answer

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date or super().date_time_string(timestamp)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


LISTED = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><KeyCount>0</KeyCount></ListBucketResult>'
DENIED = b"<Error><Code>AccessDenied</Code></Error>"


def use_server(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    account = s3_server.Account("test", "test")
    for name, value in s3_server.aws_environment(s3_server.Server(endpoint, account, account), account).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def test_no_right_to_list_and_a_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({"GET /bucket": (403, DENIED)}, date="Mon, 06 Jan 2020 10:00:00 GMT") as endpoint:
        use_server(monkeypatch, endpoint)
        found = by_name(storage_findings("s3://bucket/run"))
    assert not found["clock"].ok and "timedatectl" in found["clock"].text and "Traceback" not in found["clock"].text
    assert not found["list"].ok and "allow s3:ListBucket" in found["list"].text


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_server(monkeypatch, "http://127.0.0.1:9")
    found = by_name(storage_findings("s3://bucket/run"))
    assert not found["clock"].ok and not found["list"].ok and "127.0.0.1:9" in found["clock"].text


def test_a_server_that_ignores_the_condition_is_named(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = s3_client.client(creates=True)

    def handler(params: dict[str, Any], **_: object) -> None:
        params["headers"].pop("If-None-Match", None)

    backend.meta.events.register("before-call.s3.PutObject", handler)  # what such a server makes of the request
    try:
        found = by_name(storage_findings(f"{s3_root}/run"))
    finally:
        backend.meta.events.unregister("before-call.s3.PutObject", handler)
    assert not found["put if absent"].ok and "two workers may commit one unit" in found["put if absent"].text


def test_a_source_that_is_not_there_is_named(s3_root: str) -> None:
    sources = f"render.sources=[{{kind: pdf, uri: '{s3_root}/none'}}, {{kind: arxiv, uri: '{s3_root}/arxiv'}}]"
    storage.write_text(f"{s3_root}/run/spec.yaml", load_spec("arxiv_image_16x16x8", [sources]).to_yaml())
    storage.write_text(f"{s3_root}/arxiv/pdf/arXiv_pdf_manifest.xml", "<arXivPDF/>")
    found = by_name(storage_findings(f"{s3_root}/run"))
    assert not found[f"source {s3_root}/none"].ok and "render.sources" in found[f"source {s3_root}/none"].text
    assert found[f"source {s3_root}/arxiv"].ok


@pytest.mark.s3
def test_no_right_on_a_real_server_and_who_pays(
    ceph: s3_server.Server, ceph_root: str, use_s3: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, bucket = s3_client.client(), ceph_root.removeprefix("s3://")
    assert all(finding.ok for finding in storage_findings(f"{ceph_root}/run"))
    other = {"AWS": [f"arn:aws:iam:::user/{ceph.other.key}"]}

    def policy(**actions: list[str]) -> None:
        """What the other user is allowed and denied; an object's writer may do all that is not denied."""
        resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        statements = [
            {"Effect": effect, "Principal": other, "Action": names, "Resource": resources}
            for effect, names in actions.items()
        ]
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))

    use_s3(ceph, ceph.other)
    assert not by_name(storage_findings(f"{ceph_root}/run"))["list"].ok
    rights = {"list": "s3:ListBucket", "put if absent": "s3:PutObject", "get a range": "s3:GetObject"}
    rights["delete"] = "s3:DeleteObject"
    for name, right in rights.items():
        policy(Allow=list(rights.values()), Deny=[right])
        found = by_name(storage_findings(f"{ceph_root}/run"))
        assert not found[name].ok and f"allow {right} under the root" in found[name].text, (name, found)
    policy(Allow=list(rights.values()))
    assert all(finding.ok for finding in storage_findings(f"{ceph_root}/run"))
    use_s3(ceph)
    spec = load_spec("arxiv_image_16x16x8", [f"render.sources.0.uri={ceph_root}/source"])
    storage.write_text(f"{ceph_root}/run/spec.yaml", spec.to_yaml())
    storage.write_text(f"{ceph_root}/source/pdf/arXiv_pdf_manifest.xml", "<arXivPDF/>")
    client.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration={"Payer": "Requester"})
    use_s3(ceph, ceph.other)
    assert "DND_REQUESTER_PAYS" in by_name(storage_findings(f"{ceph_root}/run"))["list"].text
    monkeypatch.setenv("DND_REQUESTER_PAYS", bucket)
    assert all(finding.ok for finding in storage_findings(f"{ceph_root}/run"))


# ---- clusters --------------------------------------------------------------------------------------------------------
def test_another_version_of_ray_is_named() -> None:
    version = json.dumps({"version": "4", "ray_version": "2.40.0", "ray_commit": "", "session_name": ""}).encode()
    with answering({"GET /api/version": (200, version)}) as address:
        finding = ray_finding(address)
    assert not finding.ok and f"2.40.0 at {address}" in finding.text and "pip install ray==2.40.0" in finding.text


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"GET /api/version": (401, b"")}, "RAY_AUTH_TOKEN_PATH"),
        ({}, "answers 404: is it a Ray dashboard?"),
        ({"GET /api/version": (200, b"<html>")}, "does not answer as Ray's dashboard does"),
    ],
)
def test_what_is_no_ray_of_ours_is_told(answers: dict[str, tuple[int, bytes]], said: str) -> None:
    with answering(answers) as address:
        finding = ray_finding(address)
    assert not finding.ok and said in finding.text


def test_a_ray_that_is_not_there_is_told() -> None:
    assert "is the head up?" in ray_finding("http://127.0.0.1:9").text
    assert "http://127.0.0.1:8265" in ray_finding("127.0.0.1:6379").text


def test_slurm_up_down_and_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if missing := missing_binaries():
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install --no-install-recommends slurm-wlm munge")
    with slurm_cluster(2) as slurm:
        use_slurm(monkeypatch, slurm)
        assert slurm_finding() == Finding("slurm", True, "2 nodes idle")
        slurm.run("scontrol", "update", "NodeName=n[0-1]", "State=DOWN", "Reason=test")
        finding = slurm_finding()
        assert not finding.ok and "2 nodes down: `sinfo -R`" in finding.text
    (tmp_path / "slurm.conf").touch()
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert not slurm_finding().ok and "SLURM_CONF" in slurm_finding().text
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("sinfo") is None and "not on PATH" in slurm_finding().text


def use_slurm(monkeypatch: pytest.MonkeyPatch, slurm: Slurm) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name] + (f":{os.environ['PATH']}" if name == "PATH" else ""))
