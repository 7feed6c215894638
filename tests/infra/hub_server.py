"""A Hugging Face hub on loopback: as much of its protocol as huggingface_hub uses to read and to publish models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse


class Hub:
    """Repositories in memory: name -> path -> bytes; every commit gets a number."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repos: dict[str, dict[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}
        self.commits = 1

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def parts(self) -> list[str]:
            return unquote(urlparse(self.path).path).strip("/").split("/")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.parts()
            if parts[:2] == ["api", "models"]:
                return self.model("/".join(parts[2:4]), parts[4:])
            if len(parts) > 4 and parts[2] == "resolve":
                return self.resolve("/".join(parts[:2]), "/".join(parts[4:]))
            return self.answer(404, {"error": "not here"}, X_Error_Code="RepoNotFound")

        def model(self, repo: str, rest: list[str]) -> None:
            files = hub.repos.get(repo)
            if files is None:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            if rest[:1] == ["tree"]:
                under = "/".join(rest[2:])
                entries = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in sorted(files.items())
                    if path.startswith(under)
                ]
                return self.answer(200, entries)
            siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(files.items())]
            return self.answer(
                200, {"id": repo, "modelId": repo, "sha": hub.sha, "siblings": siblings, "private": False}
            )

        def resolve(self, repo: str, path: str) -> None:
            data = hub.repos.get(repo, {}).get(path)
            if data is None:
                return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X_Repo_Commit": hub.sha,
                "Accept_Ranges": "bytes",
            }
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            if not start:
                return self.answer(200, data, **headers)
            whole = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], Content_Range=whole, **headers)

        def do_POST(self) -> None:
            parts, body = self.parts(), self.body()
            if parts == ["api", "repos", "create"]:
                wanted = json.loads(body)
                repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                hub.repos.setdefault(repo, {})
                return self.answer(200, {"url": f"{hub.url}/{repo}", "name": repo, "id": repo})
            repo = "/".join(parts[2:4])
            if parts[4:5] == ["preupload"]:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            if parts[4:5] == ["commit"]:
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                hub.commits += 1
                done = {"commitUrl": f"{hub.url}/{repo}/commit/{hub.sha}", "commitOid": hub.sha, "pullRequestUrl": None}
                return self.answer(200, done)
            return self.answer(404, {"error": self.path})

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub for as long as the block lasts."""
    hub = Hub("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
