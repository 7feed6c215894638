"""What evaluation takes by name: fetched once, held to its digest, named with a command where it is out of reach."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra import weights
from infra.cli import app
from infra.commands.evaluation import _with_weights
from train.evaluation.features import PUBLISHED_INCEPTION

DATA = b"weights"


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a server on loopback has a file of weights."""
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    (tmp_path / "served/net.pth").write_bytes(DATA)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/net.pth"
    server.shutdown()
    thread.join()
    server.server_close()


def enter(monkeypatch: pytest.MonkeyPatch, address: str, sha256: str) -> None:
    """Puts an entry `net` into the registry for this test: the real ones are far away."""
    monkeypatch.setitem(weights.REGISTRY, "net", weights.Weights("a net", address, "7 B", sha256))


def test_a_name_is_fetched_and_held_to_its_digest(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, address, hashlib.sha256(DATA).hexdigest())
    path = Path(weights.fetch_weights("net"))
    assert path.read_bytes() == DATA and Path(weights.fetch_weights(address)) == path
    said = CliRunner().invoke(app, ["pretrained", "net"])
    assert said.stdout.strip() == str(path)
    assert _with_weights("inception:net") == f"inception:{path}"
    enter(monkeypatch, address, "0" * 64)
    with pytest.raises(ValueError, match="is not what was published"):
        weights.fetch_weights("net")


def test_what_is_out_of_reach_names_the_command_to_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, "http://127.0.0.1:9/net.pth", "")
    with pytest.raises(ValueError, match=r"net: out of reach .* run `curl -LO http://127\.0\.0\.1:9/net\.pth`"):
        weights.fetch_weights("net")


def test_paths_stay_as_they_are() -> None:
    assert weights.fetch_weights("some/file.npz") == "some/file.npz"
    for spec in ("builtin", "auto", "tesserocr", "module:a.b:c", "qwen2-vl:", "qwen2-vl:folder"):
        assert _with_weights(spec) == spec


def test_the_list_names_all_and_the_digest_is_the_one_that_may_be_called_fid() -> None:
    said = CliRunner().invoke(app, ["pretrained"]).output
    assert all(name in said and one.address in said for name, one in weights.REGISTRY.items())
    assert weights.REGISTRY["inception"].sha256 == PUBLISHED_INCEPTION
