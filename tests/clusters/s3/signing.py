"""Signature version 4 by hand, for what boto3 never makes: other clocks, odd policies, streams."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from tests.clusters.s3.cluster import BUCKET, REGION, S3

_ALGORITHM = "AWS4-HMAC-SHA256"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@dataclass(frozen=True)
class Answer:
    """The server's response."""

    status: int
    headers: Mapping[str, str]
    body: str


def form(
    store: S3,
    prefix: str,
    *,
    largest: int = 1 << 20,
    signed_at: datetime.datetime | None = None,
    expires: datetime.datetime | None = None,
    conditions: Sequence[object] = (),
) -> dict[str, str]:
    """The fields of a presigned POST of objects under ``prefix`` with at most ``largest`` bytes.

    By default it is signed now and valid for a minute.
    """
    signed_at = signed_at or now()
    expires = expires or now() + datetime.timedelta(minutes=1)
    scope = f"{signed_at:%Y%m%d}/{REGION}/s3/aws4_request"
    own = {
        "x-amz-algorithm": _ALGORITHM,
        "x-amz-credential": f"{store.access_key}/{scope}",
        "x-amz-date": f"{signed_at:%Y%m%dT%H%M%SZ}",
    }
    policy = {
        "expiration": f"{expires:%Y-%m-%dT%H:%M:%S.000Z}",
        "conditions": [
            {"bucket": BUCKET},
            ["starts-with", "$key", prefix],
            ["content-length-range", 0, largest],
            *({name: value} for name, value in own.items()),
            *conditions,
        ],
    }
    encoded = base64.b64encode(json.dumps(policy).encode()).decode()
    signature = hmac.new(_key(store, scope), encoded.encode(), hashlib.sha256).hexdigest()
    return {**own, "policy": encoded, "x-amz-signature": signature}


def signed_url(
    store: S3,
    method: str,
    key: str,
    *,
    signed_at: datetime.datetime | None = None,
    seconds: int = 60,
) -> str:
    """A presigned URL by a clock that shows ``signed_at``."""
    signed_at = signed_at or now()
    scope = f"{signed_at:%Y%m%d}/{REGION}/s3/aws4_request"
    path = "/" + quote(f"{BUCKET}/{key}")
    query = "&".join(
        f"{name}={quote(value, safe='')}"
        for name, value in (
            ("X-Amz-Algorithm", _ALGORITHM),
            ("X-Amz-Credential", f"{store.access_key}/{scope}"),
            ("X-Amz-Date", f"{signed_at:%Y%m%dT%H%M%SZ}"),
            ("X-Amz-Expires", str(seconds)),
            ("X-Amz-SignedHeaders", "host"),
        )
    )
    host = urlsplit(store.endpoint).netloc
    request = "\n".join([method, path, query, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"])
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join([_ALGORITHM, f"{signed_at:%Y%m%dT%H%M%SZ}", scope, digest])
    signature = hmac.new(_key(store, scope), text.encode(), hashlib.sha256).hexdigest()
    return f"{store.endpoint}{path}?{query}&X-Amz-Signature={signature}"


def post(
    url: str,
    fields: Mapping[str, str],
    data: Iterable[bytes],
    size: int,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Upload ``data``, of ``size`` bytes in all, as a form; it is never whole in memory."""
    boundary = uuid.uuid4().hex
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    first, last = head.encode(), f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield first
        yield from data
        yield last

    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(first) + size + len(last)),
    }
    return send(urllib.request.Request(url, body(), headers, method="POST"), context)


def send(request: urllib.request.Request, context: ssl.SSLContext | None = None) -> Answer:
    """The answer, whatever its status; no proxy is asked."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=120)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read().decode())
    with answer:
        return Answer(answer.status, dict(answer.headers), answer.read().decode())


def _key(store: S3, scope: str) -> bytes:
    key = b"AWS4" + store.secret_key.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
