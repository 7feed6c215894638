"""`ray job submit` against a real head node, as the README says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests" / "tiny.yaml"
BIN = Path(sys.executable).parent


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own on loopback; yields the dashboard's address and the environment of its users."""
    port, dashboard, client, agent = _free_ports(4)
    environment = dict(os.environ) | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    start = [
        *(BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        f"--temp-dir=/tmp/dnd-ray-{port}",  # short: its sockets' paths have a limit
    ]
    log = (tmp_path_factory.mktemp("head") / "log").open("wb")
    process = subprocess.Popen([*map(str, start)], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(dashboard)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(port: int) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2).read()
            return
        except urllib.error.HTTPError:
            return  # it answers, and asks for the token that `ray job submit` sends
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("the head node did not come up within a minute")


def test_a_submitted_job_renders(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    command = ["dnd", "render", "tests/tiny.yaml", "--root", str(tmp_path / "root")]
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--", *command]
    result = subprocess.run(
        submit, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    manifest = json.loads((tmp_path / "root/images/train/manifest.json").read_text())
    assert manifest["totals"]["written"] > 50
    assert "succeeded" in result.stdout + result.stderr
