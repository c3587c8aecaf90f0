"""Whether the API server and the nodes are ready, without a client library.

While a cluster starts this is polled some twenty times a second.
"""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from tests.clusters.kubernetes.configuration import Configuration


def ready(configuration: Configuration) -> bool:
    """Whether it takes requests."""
    return _get(configuration, "/readyz") is not None


def ready_nodes(configuration: Configuration) -> list[str]:
    """The nodes that are Ready; none while the API server does not answer."""
    answer = _get(configuration, "/api/v1/nodes")
    items: list[Any] = json.loads(answer)["items"] if answer is not None else []
    return sorted(
        item["metadata"]["name"]
        for item in items
        for condition in item["status"].get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    )


def _get(configuration: Configuration, path: str) -> bytes | None:
    """The body of a successful answer within 5 s; None if there is none."""
    own = configuration.authority.directory
    context = ssl.create_default_context(cafile=configuration.authority.pair.certificate)
    context.load_cert_chain(own / "admin.pem", own / "admin.key")
    connection = http.client.HTTPSConnection(configuration.server, 6443, timeout=5, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
