"""What the API server refuses, in its own words: a ``Status`` object with a code and a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.kubernetes_server.resources import Resource

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    413: "RequestEntityTooLarge",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Refused(Exception):
    """A request that is answered with a failure."""

    def __init__(
        self,
        code: int,
        message: str,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = dict(headers or {})
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason or REASONS.get(code, "Unknown"),
            **({"details": dict(details)} if details else {}),
            "code": code,
        }


def _details(resource: Resource, name: str) -> dict[str, Any]:
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, **group, "kind": resource.plural}


def not_found(resource: Resource, name: str) -> Refused:
    message = f'{resource.qualified} "{name}" not found'
    return Refused(404, message, details=_details(resource, name))


def already_exists(resource: Resource, name: str) -> Refused:
    message = f'{resource.qualified} "{name}" already exists'
    return Refused(409, message, "AlreadyExists", _details(resource, name))


def stale(resource: Resource, name: str) -> Refused:
    return Refused(
        409,
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": the object has been'
        " modified; please apply your changes to the latest version and try again",
        details=_details(resource, name),
    )


def expired(asked: int, oldest: int) -> Refused:
    return Refused(410, f"too old resource version: {asked} ({oldest})")


def forbidden(resource: Resource, name: str, why: str) -> Refused:
    called = f' "{name}"' if name else ""
    message = f"{resource.qualified}{called} is forbidden: {why}"
    return Refused(403, message, details=_details(resource, name))


def invalid(resource: Resource, name: str, causes: Mapping[str, str]) -> Refused:
    """Fields by path, with what is wrong (``Required value``, ``Invalid value: 3: must …``)."""
    listed = [f"{field}: {why}" for field, why in causes.items()]
    said = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
    group = f".{resource.group}" if resource.group else ""
    return Refused(
        422,
        f'{resource.kind}{group} "{name}" is invalid: {said}',
        details={
            "name": name,
            **({"group": resource.group} if resource.group else {}),
            "kind": resource.kind,
            "causes": [
                {"reason": "FieldValueInvalid", "message": why, "field": field}
                for field, why in causes.items()
            ],
        },
    )
