"""Authentication for a :class:`tests.faults.FaultServer`: what to put into its ``auth``."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.faults import FaultServer, Handler


class Bearer:
    """An auth for ``FaultServer.auth``: tokens from ``/token`` on the same or another server."""

    def __init__(self, server: FaultServer, realm: str | None = None, password: str = "") -> None:
        self.realm = realm if realm is not None else f"{server.url}/token"
        self.password = password
        self.valid: set[str] = set()
        self.asked: list[dict[str, list[str]]] = []
        self.expires_in: Any = 300

    def revoke(self) -> None:
        self.valid.clear()

    def __call__(self, handler: Handler) -> bool:
        if urlsplit(handler.path).path == "/token":
            self.token(handler)
            return False
        given = handler.headers.get("Authorization", "")
        if given.removeprefix("Bearer ") in self.valid:
            return True
        challenge = f'Bearer realm="{self.realm}",service="a, b",scope="repository:x:pull"'
        handler.fail(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        return False

    def token(self, handler: Handler) -> None:
        query = parse_qs(urlsplit(handler.path).query or handler.drain().decode())
        self.asked.append({**query, "authorization": [handler.headers.get("Authorization", "")]})
        pair = base64.b64encode(f"user:{self.password}".encode()).decode()
        good = handler.headers.get("Authorization") == f"Basic {pair}"
        if self.password and not good and query.get("refresh_token") != [self.password]:
            handler.fail(401, "UNAUTHORIZED")
            return
        token = f"token-{len(self.asked)}"
        self.valid.add(token)
        reply = {"token": token, "expires_in": self.expires_in}
        handler.reply(200, json.dumps(reply).encode())


class Basic:
    """An auth for ``FaultServer.auth``: one user's password."""

    def __init__(self, password: str) -> None:
        self.password = password

    def __call__(self, handler: Handler) -> bool:
        pair = base64.b64encode(f"user:{self.password}".encode()).decode()
        if handler.headers.get("Authorization") == f"Basic {pair}":
            return True
        handler.fail(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="a"'})
        return False
