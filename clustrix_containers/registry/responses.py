"""What a registry answered, in a user's words.

Status and error codes: https://github.com/opencontainers/distribution-spec ("Error Codes").
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from clustrix_containers.errors import RegistryError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its body was read, or is still to be read from ``stream``."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    stream: BaseHTTPResponse | None = None
    url: str = ""
    challenges: tuple[str, ...] = ()


def refusal(
    answer: Answer, host: str, action: str, credentials: str | None, *, login: str | None = None
) -> RegistryError:
    """The error for an answer that nobody asked for.

    ``action`` reads on after "for": ``pushing team/runs``. ``credentials`` says where
    those that were sent came from; ``None``: none were. ``login`` is the registry to log
    in to, where that is not ``host``.
    """
    details = _details(answer.body)
    codes = tuple(code for code, _ in details)
    says = "; ".join(text for _, text in details if text)
    why, hint = _why(answer, login or host, credentials, codes)
    reason = f"{why} ({says})" if why and says else why or says
    message = f"{host} answered {answer.status} {_phrase(answer.status)} for {action}"
    fields: dict[str, Any] = {}
    after = retry_after(answer.headers)
    if after is not None:
        fields["retry_after"] = after
    return RegistryError(
        f"{message}: {reason}" if reason else message,
        hint=hint,
        status=answer.status,
        codes=codes,
        temporary=answer.status in TRANSIENT,
        host=host,
        **fields,
    )


def _why(
    answer: Answer, host: str, credentials: str | None, codes: tuple[str, ...]
) -> tuple[str, str | None]:
    login = f"Run: docker login {host}"
    if answer.status == 400 and b"HTTPS" in answer.body[:200]:
        return "it speaks TLS and was asked without", "Take it out of CLUSTRIX_INSECURE_REGISTRIES."
    if answer.status == 401:
        if credentials is None:
            return "no credentials for this host", login
        return f"it does not accept the credentials from {credentials}", login
    if answer.status == 403:
        if credentials is None:
            return "no permission without credentials, or it does not exist", login
        why = f"the credentials from {credentials} do not permit it, or it does not exist"
        return (
            f"{why} (some registries answer 403 for what is not there)",
            "Check the name, and the permissions of this account on the repository.",
        )
    if answer.status == 404:
        if "MANIFEST_BLOB_UNKNOWN" in codes or "BLOB_UNKNOWN" in codes:
            return "a blob is not there", None
        return "it does not exist", "Check the name; some registries hide what you may not see."
    if answer.status == 413:
        return "a request body was too large for it or for a proxy before it", None
    if answer.status == 429:
        after = retry_after(answer.headers)
        when = f", try again in {after:.0f} s" if after is not None else ""
        return f"too many requests{when}", "Logging in raises the limit on many registries."
    return "", None


def _details(body: bytes) -> list[tuple[str, str]]:
    """(code, message) of the specification's error body; empty for any other body."""
    try:
        errors = json.loads(body)["errors"]
        return [
            (_plain(item.get("code", "")), _message(item))
            for item in errors[:5]
            if isinstance(item, dict)
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _message(item: Mapping[str, Any]) -> str:
    """What it says; of an error without a code of its own the cause stands in the detail alone."""
    said = _plain(item.get("message") or "")
    detail = item.get("detail") if item.get("code") == "UNKNOWN" else None
    if isinstance(detail, Mapping):
        # docker-registry: an operation of its storage, with the kernel's number for why not.
        enclosed = detail.get("Enclosed")
        number = enclosed.get("Err") if isinstance(enclosed, Mapping) else None
        detail = os.strerror(number) if isinstance(number, int) else json.dumps(detail)
    # The end of it: Go's errors say the cause last.
    cause = _plain(str(detail)[-300:]) if detail else ""
    return ": ".join(part for part in (said, cause) if part)


def _plain(text: Any) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text))[:300].strip()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(a status unknown here)"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks to wait (a number or a date); None without one."""
    text = headers.get("Retry-After")
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
