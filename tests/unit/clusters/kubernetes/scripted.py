"""An API server that gives scripted responses, over a real connection."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clustrix_containers.clusters.kubernetes.api import Api, connect
from clustrix_containers.clusters.kubernetes.manifest import (
    CONTAINER,
    LABEL_ATTEMPT,
    LABEL_ELEMENT,
    LABEL_RUN,
)

Response = tuple[int, dict[str, Any], dict[str, str]]
Script = Callable[[str, dict[str, str]], Response]
"""Path and query of a request -> status, JSON and headers of the response.

A DELETE has the query ``delete``.
"""


def kubeconfig(path: Path, server: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    path.write_text(json.dumps(config))
    return path


@contextlib.contextmanager
def api_server(directory: Path, script: Script) -> Iterator[tuple[Api, list[str]]]:
    """A connection to it, and the paths of the requests so far."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_DELETE(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            paths.append(parts.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if self.command == "DELETE":
                query["delete"] = ""
            status, value, headers = script(parts.path, query)
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            api = connect(kubeconfig(directory / "kubeconfig", url), None, "team")
            yield api, paths
            api.client.rest_client.pool_manager.clear()
        finally:
            server.shutdown()
            thread.join()


def pod(run: str, element: int, message: str) -> dict[str, Any]:
    """A pod that has ended well, as the API gives it."""
    labels = {LABEL_RUN: run, LABEL_ATTEMPT: "0", LABEL_ELEMENT: str(element)}
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}
    return {
        "metadata": {"name": f"{run}-{element}", "uid": f"uid-{element}", "labels": labels},
        "spec": {"containers": [{"name": CONTAINER}]},
        "status": {
            "phase": "Succeeded",
            "containerStatuses": [{"name": CONTAINER, "state": state}],
        },
    }


def job(run: str, element: int, status: dict[str, Any]) -> dict[str, Any]:
    """The Job of one element, as the API gives it."""
    labels = {LABEL_RUN: run, LABEL_ATTEMPT: "0", LABEL_ELEMENT: str(element)}
    metadata = {"name": f"{run}-0", "uid": f"job-{element}", "labels": labels}
    return {"metadata": metadata, "spec": {}, "status": status}
