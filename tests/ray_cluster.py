"""Ray clusters on loopback for tests: a head with token authentication, nodes that join it and can be killed.

Every cluster has its own ports, folder and token; only processes started here are ever ended.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

BIN = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"


class Cluster(NamedTuple):
    """Where a cluster is (for `ray job submit`, and for nodes that join), what its users need, what runs it."""

    dashboard: str
    address: str
    environment: dict[str, str]
    folder: Path
    nodes: list[subprocess.Popen[bytes]]
    bin: Path = BIN

    def add_node(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Starts one more node; it takes work after a few seconds."""
        return self._start(len(self.nodes), cpus, f"--address={self.address}")

    def kill_node(self, number: int) -> None:
        """Ends a node as a pulled plug does: SIGKILL for all its processes at once."""
        _kill(self.nodes[number])

    def alive(self) -> int:
        """Nodes that the head counts as alive."""
        headers = {"Authorization": f"Bearer {(self.folder / 'token').read_text()}"}
        request = urllib.request.Request(f"{self.dashboard}/nodes?view=summary", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            nodes = json.load(answer)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def gather(self, number: int, cpus: int = 1, seconds: float = 300) -> None:
        """Waits until so many nodes are alive; starts another for one that gave up (Ray's 30 s, on a busy machine)."""
        deadline = time.monotonic() + seconds
        while self.alive() < number:
            assert time.monotonic() < deadline, f"{self.alive()} of {number} nodes came up: see {self.folder}"
            for _ in range(number - sum(node.poll() is None for node in self.nodes)):
                self.add_node(cpus)
            time.sleep(0.5)

    def submit(self, *command: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """`ray job submit` with a token, as the guide says; waits for the job and returns what it said."""
        submit = [
            str(self.bin / "ray"),
            "job",
            "submit",
            "--address",
            self.dashboard,
            "--working-dir",
            ".",
            "--",
            *command,
        ]
        return subprocess.run(
            submit, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def _start(self, number: int, cpus: int, *how: str) -> subprocess.Popen[bytes]:
        ports = zip(("runtime-env-agent-port", "dashboard-agent-listen-port", "metrics-export-port"), free_ports(3))
        command = [
            *(str(self.bin / "ray"), "start", "--block", f"--node-ip-address={LOOPBACK}", f"--num-cpus={cpus}"),
            *("--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"),
            *(f"--{name}={port}" for name, port in ports),
            f"--temp-dir={self.folder}/{number}",  # nodes that start at once race for names of sockets in one
            *how,
        ]
        with (self.folder / f"node-{number}.log").open("wb") as log:
            node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        return node


@contextmanager
def ray_cluster(
    num_nodes: int = 1, cpus: int = 2, extra: dict[str, str] | None = None, bin: Path = BIN
) -> Iterator[Cluster]:
    """A cluster of a head and num_nodes - 1 further nodes of `cpus` CPUs.

    Args:
        extra: environment of all of it.
        bin: where its Python and `ray` are.
    """
    folder = Path(tempfile.mkdtemp(prefix="dnd-ray-", dir="/tmp"))  # short: socket paths end at 107 characters
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    port, dashboard, client = free_ports(3)
    environment = _environment(folder / "token", bin) | (extra or {})
    cluster = Cluster(f"http://{LOOPBACK}:{dashboard}", f"{LOOPBACK}:{port}", environment, folder, [], bin)
    head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-host={LOOPBACK}")
    try:
        for _ in range(3):  # a head gives up after Ray's own 30 s, which is little on a busy machine
            cluster._start(0, cpus, *head, f"--ray-client-server-port={client}")
            if _is_up(cluster):
                break
            _kill(cluster.nodes.pop())
        assert cluster.nodes, f"the head did not come up: {(folder / 'node-0.log').read_text()[-2000:]}"
        for _ in range(num_nodes - 1):
            cluster.add_node(cpus)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            _kill(node)
        shutil.rmtree(folder, ignore_errors=True)


def locked_environment(folder: Path) -> Path:
    """The bin of a new environment in which everything that the lock installs is found, and this project is not.

    A node of infra/ray/cluster.yaml has no more. The packages are those of the environment that runs this: of its
    site-packages only the modules are seen, not the .pth file by which an editable project is found.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lock.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ray = folder / "bin/ray"
    ray.write_text(f"#!{folder}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    return folder / "bin"


def _environment(token: Path, bin: Path) -> dict[str, str]:
    """Both sides of a cluster with token authentication need the two RAY_AUTH variables (README)."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"
    }
    return environment | {
        "PATH": f"{bin}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 starves the workers where other tests are busy
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }


def _kill(node: subprocess.Popen[bytes]) -> None:
    """Every process of a node: `ray start` and all that descend from it."""
    if node.poll() is None:
        parent = psutil.Process(node.pid)
        family = [*parent.children(recursive=True), parent]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    node.wait(30)


def free_ports(number: int) -> list[int]:
    """So many ports of loopback that nobody listens on."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(number)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _is_up(cluster: Cluster) -> bool:
    """Waits until the head counts itself as alive; False where it has given up."""
    deadline = time.monotonic() + 120
    while cluster.nodes[0].poll() is None and time.monotonic() < deadline:
        try:
            if cluster.alive():
                return True
        except (OSError, ValueError, KeyError):  # not listening yet, or not knowing yet
            pass
        time.sleep(0.5)
    return False
