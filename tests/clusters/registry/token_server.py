"""A token service as https://distribution.github.io/distribution/spec/auth/ describes it.

``python -m tests.clusters.registry.token_server CERTIFICATE KEY`` listens on a free port of
127.0.0.1 and prints which: ``listening on 127.0.0.1:PORT``. One user, :data:`USER`, may do
everything; who gives no password may pull; :data:`REFRESH` is a refresh token of that user.
"""

from __future__ import annotations

import base64
import hmac
import http.server
import json
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

USER = "alice"
PASSWORD = "correct horse: battery/staple=é"
REFRESH = "a-refresh-token"
SERVICE = "clustrix-test-registry"
ISSUER = "clustrix-test-issuer"
SECONDS = 300
LEEWAY = 60
"""Seconds that docker-registry adds to the end of a token."""
LIFE = Path("life")
"""A file: the seconds after which the registry refuses a token, whatever its ``expires_in`` is."""


class Handler(http.server.BaseHTTPRequestHandler):
    """GET with Basic or nobody; POST with a refresh token."""

    protocol_version = "HTTP/1.1"
    key: bytes
    x5c: list[str]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        given = self.headers.get("Authorization")
        if given is None:
            self._grant(query.get("scope", []), "", {"pull"})
            return
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if hmac.compare_digest(given.encode(), f"Basic {pair}".encode()):
            self._grant(query.get("scope", []), USER, None)
        else:
            self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]})

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())
        if form.get("grant_type") != ["refresh_token"] or form.get("refresh_token") != [REFRESH]:
            self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "unknown token"}]})
            return
        self._grant(form.get("scope", []), USER, None)

    def _grant(self, scopes: list[str], subject: str, allowed: set[str] | None) -> None:
        access = []
        for scope in " ".join(scopes).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            granted = [it for it in actions.split(",") if allowed is None or it in allowed]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        try:
            end = now - LEEWAY + int(LIFE.read_text())
        except FileNotFoundError:
            end = now + SECONDS
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": subject,
            "nbf": min(now, end) - 5,
            "iat": min(now, end),
            "exp": end,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        token = jwt.encode(claims, self.key, algorithm="ES256", headers={"x5c": self.x5c})
        self._answer(200, {"token": token, "expires_in": SECONDS})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(certificate: Path, key: Path, host: str) -> None:
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    Handler.x5c = [base64.b64encode(loaded.public_bytes(Encoding.DER)).decode()]
    Handler.key = key.read_bytes()
    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    sys.stderr.write(f"listening on {host}:{server.server_port}\n")
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
