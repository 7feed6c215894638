"""A Kubernetes API server for kubectl in tests: it keeps RayJobs and JobSets, and does nothing with them.

kubectl is real; the server is not (none can be had from the registries): it speaks discovery, create, get and delete.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]
GROUPS = {"ray.io/v1": ("rayjobs", "RayJob"), "jobset.x-k8s.io/v1alpha2": ("jobsets", "JobSet")}


class KubeServer(ThreadingHTTPServer):
    """The server; `objects` are what it keeps, by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Manifest] = {}

    def one(self) -> Manifest:
        """The only object that there is."""
        (found,) = self.objects.values()
        return found


@contextmanager
def kube_server(folder: Path) -> Iterator[tuple[KubeServer, str]]:
    """A running server, and the KUBECONFIG by which kubectl finds it."""
    server = KubeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster = {"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config | {"users": [{"name": "test", "user": {}}], "current-context": "test"}))
    try:
        yield server, str(path)
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: KubeServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/openapi/v2":  # an empty document, in protobuf: nothing to check fields against
            self._answer(200, None)
        elif path in ("/api", "/apis", *(f"/apis/{group}" for group in GROUPS)):
            self._answer(200, _discovery(path))
        else:
            self._answer_object(path)

    def do_POST(self) -> None:
        made: Manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = f"{self.path.partition('?')[0]}/{made['metadata']['name']}"
        if path in self.server.objects:
            self._answer(409, _failure(409, "AlreadyExists", f"{made['metadata']['name']} already exists"))
            return
        self.server.objects[path] = made
        self._answer(201, made)

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.objects.pop(self.path.partition("?")[0], None)
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def _answer_object(self, path: str) -> None:
        found = self.server.objects.get(path)
        if found is None:
            self._answer(404, _failure(404, "NotFound", f"{path} not found"))
            return
        self._answer(200, found)

    def _answer(self, code: int, body: Manifest | None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        kind = "application/json" if body is not None else "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _discovery(path: str) -> Manifest:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = {group: {"groupVersion": group, "version": group.partition("/")[2]} for group in GROUPS}
        groups = [
            {"name": group.partition("/")[0], "versions": [version], "preferredVersion": version}
            for group, version in versions.items()
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    group = path.removeprefix("/apis/")
    plural, kind = GROUPS[group]
    resource = {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True}
    resources = [resource | {"verbs": ["create", "delete", "get", "list"]}]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}


def _failure(code: int, reason: str, message: str) -> Manifest:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
