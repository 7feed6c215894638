"""S3 servers on loopback for tests: moto in this process, Debian's Ceph RADOS gateway, and a proxy that makes faults.

The gateway needs `apt-get install radosgw ceph-mon ceph-osd`; it is ready in about 12 s, keeps objects in memory and
ends with the tests. By hand: `python tests/s3_server.py` starts it and prints its address and keys; Ctrl-C stops it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from ray_cluster import free_ports

BINARIES = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool")
CONF = """[global]
fsid = {fsid}
mon host = {mon}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 2
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
"""


class Account(NamedTuple):
    """Access key and secret of one user."""

    key: str
    secret: str


class Server(NamedTuple):
    """A server's address, its owner's account and another user's."""

    endpoint: str
    owner: Account
    other: Account


def aws_environment(server: Server, account: Account) -> dict[str, str]:
    """What the AWS chain needs to reach a server as one user, and nothing of this machine's own configuration."""
    return {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": account.key,
        "AWS_SECRET_ACCESS_KEY": account.secret,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def moto_server() -> Iterator[Server]:
    """moto's S3 in a thread: it believes any signature, so it serves what does not depend on who asks."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield Server(f"http://{host}:{port}", Account("test", "test"), Account("other", "other"))
    server.stop()


def missing_binaries() -> list[str]:
    """What of the Ceph gateway is not installed."""
    return [name for name in BINARIES if shutil.which(name) is None]


@contextmanager
def ceph_server() -> Iterator[Server]:
    """A Ceph RADOS gateway with one monitor and one OSD in memory, stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="dnd-ceph-", dir="/tmp"))  # short: socket paths end at 107 characters
    children: list[subprocess.Popen[bytes]] = []
    try:
        yield _start_ceph(folder, children)
    finally:
        for child in reversed(children):
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start_ceph(folder: Path, children: list[subprocess.Popen[bytes]]) -> Server:
    ports, fsid = free_ports(3), str(uuid.uuid4())
    mon = f"[v2:127.0.0.1:{ports[1]},v1:127.0.0.1:{ports[2]}]"
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    (folder / "ceph.conf").write_text(CONF.format(fsid=fsid, mon=mon, folder=folder, port=ports[0]))

    def run(*command: str, timeout: float = 60) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"

    def daemon(*command: str) -> None:
        with (folder / f"{command[0]}.out").open("wb") as out:
            child = ["setpriv", "--pdeathsig", "KILL", *command, "-f"]  # ends with this process, however that ends
            children.append(subprocess.Popen(child, env=environment, stdout=out, stderr=out))

    environment = os.environ | {"CEPH_CONF": str(folder / "ceph.conf")}
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", mon, monmap)
    run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    for name in ("client.admin", "client.rgw", "osd.0"):
        run("ceph-authtool", keyring, "--gen-key", "-n", name, "--cap", "mon", "allow *", "--cap", "osd", "allow *")
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    daemon("ceph-mon", "-i", "a")
    run("ceph", "osd", "create")
    run("ceph-osd", "-i", "0", "--mkfs")
    daemon("ceph-osd", "-i", "0")
    daemon("radosgw", "-n", "client.rgw")
    accounts = [Account(f"{user}key", f"{user}secret") for user in ("test", "other")]
    for user in accounts:
        keys = (f"--access-key={user.key}", f"--secret={user.secret}")
        run(
            "radosgw-admin",
            "-n",
            "client.rgw",
            "user",
            "create",
            f"--uid={user.key}",
            f"--display-name={user.key}",
            *keys,
        )
    _wait_until_ready(f"http://127.0.0.1:{ports[0]}")
    return Server(f"http://127.0.0.1:{ports[0]}", *accounts)


def _wait_until_ready(endpoint: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"{endpoint}: the gateway did not answer in {seconds} s")


Answer = Callable[[str, Message], "tuple[int, dict[str, str], bytes] | None"]


def pass_on(method: str, headers: Message) -> None:
    """No answer but the server's."""


FAULTS = ("503", "500", "slow", "reset", "cut upload", "lost answer", "cut download")


class FaultProxy:
    """A proxy before an S3 server that spoils a seeded share of requests with each of FAULTS in turn; `made` counts.

    `answer(method, headers)` may give (status, headers, body) in the server's place, or change the request's headers.
    """

    def __init__(
        self,
        endpoint: str,
        share: float = 0.0,
        seed: int = 0,
        kinds: tuple[str, ...] = FAULTS,
        answer: Answer = pass_on,
    ) -> None:
        self.answer = answer
        self.made: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()  # "GET /bucket/key"
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._share, self._kinds = share, kinds
        handler = type("Handler", (_Handler,), {"proxy": self, "target": endpoint.removeprefix("http://")})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, method: str, body: bool) -> str | None:
        """What is to go wrong with the next request, if anything: only what its kind allows."""
        with self._lock:
            if self._random.random() >= self._share:
                return None
            fits = {"cut download": method == "GET", "cut upload": body}
            kind = min((kind for kind in self._kinds if fits.get(kind, True)), key=self.made.__getitem__, default=None)
            if kind:
                self.made[kind] += 1
            return kind

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    target: str

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.proxy.requests[f"{self.command} {self.path.partition('?')[0]}"] += 1
        fault = self.proxy.fault(self.command, length > 0)
        if fault == "reset":
            return self._reset()
        if fault == "cut upload":
            self.rfile.read(length // 2)
            return self._reset()
        body = self.rfile.read(length)
        if fault in ("503", "500"):
            code = {"503": "SlowDown", "500": "InternalError"}[fault]
            return self._answer(int(fault), {}, f"<Error><Code>{code}</Code></Error>".encode())
        if answer := self.proxy.answer(self.command, self.headers):
            return self._answer(*answer)
        if fault == "slow":
            time.sleep(0.1)
        status, headers, content = self._forward(body)
        if fault == "lost answer":
            return self._reset()
        self._answer(status, headers, content, cut=fault == "cut download")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection(self.target, timeout=60)
        skipped = ("connection", "expect", "transfer-encoding")
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for key, value in self.headers.items():
            if key.lower() not in skipped:
                connection.putheader(key, value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        headers = {key: value for key, value in response.getheaders() if key.lower() not in skipped}
        connection.close()
        return response.status, headers, content

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() != "content-length":
                self.send_header(key, value)
        size = headers.get("Content-Length") or headers.get("content-length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._reset()

    def _reset(self) -> None:
        """Ends the connection with RST, as a dying machine does."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    with ceph_server() as running:
        print(running, flush=True)
        signal.sigwait([signal.SIGINT, signal.SIGTERM])
