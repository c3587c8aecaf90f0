"""Checks objects against the OpenAPI schema of Kubernetes 1.36, as ``fieldValidation=Strict`` does.

The schema is a file of the distribution ``kubernetes-validate``; of its code nothing is used.
"""

from __future__ import annotations

import base64
import binascii
import functools
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fake_kubernetes.objects import ApiError, Object, Resource

VERSION = "1.36"

_QUANTITY = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[EPTGMK]i?|k|Ki|[num])?$")
_TYPES: dict[str, Any] = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}


@functools.cache
def _definitions() -> dict[str, Any]:
    found = importlib.util.find_spec("kubernetes_validate")
    assert found and found.origin, "kubernetes-validate is not installed: run 'make setup'"
    folder = Path(found.origin).parent / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"
    loaded: dict[str, Any] = json.loads((folder / "_definitions.json").read_text("utf-8"))["$defs"]
    return loaded


def check(resource: Resource, item: Any) -> None:
    """Refuse an object of another kind, with an unknown field or with a value of another type."""
    if not isinstance(item, dict):
        raise ApiError(400, "the object provided is unrecognized (must be of type Object)")
    named = (item.get("apiVersion", resource.api_version), item.get("kind", resource.kind))
    if named != (resource.api_version, resource.kind):
        raise ApiError(400, f"{named} does not match {resource.api_version}, {resource.kind}")
    group = resource.group or "core"
    name = f"io.k8s.api.{group}.v1.{resource.kind}"
    wrong = list(_walk({"$ref": f"#/$defs/{name}"}, item, ""))
    if missing := [it for it in wrong if it.endswith("Required value")]:
        shown = item.get("metadata", {}).get("name", "")
        raise ApiError(422, f'{resource.kind} "{shown}" is invalid: {missing[0]}')
    if wrong:
        head = f'{resource.kind} in version "v1" cannot be handled as a {resource.kind}'
        raise ApiError(400, f"{head}: strict decoding error: {', '.join(wrong)}")


def _walk(schema: Any, value: Any, path: str) -> Iterator[str]:
    """What is wrong with a value."""
    reference = schema.get("$ref", "").removeprefix("#/$defs/")
    if value is None:
        return
    if reference.endswith((".Quantity", ".IntOrString")):
        right = isinstance(value, str | int | float)
        if not right or (reference.endswith(".Quantity") and not _QUANTITY.match(str(value))):
            yield _mismatch(value, path, reference.rpartition(".")[2])
        return
    if reference:
        schema = _definitions()[reference]
    kinds = schema.get("type")
    kind = next((it for it in kinds if it != "null"), None) if isinstance(kinds, list) else kinds
    if kind == "object" or "properties" in schema:
        yield from _object(schema, value, path)
    elif kind == "array" and isinstance(value, list):
        for number, part in enumerate(value):
            yield from _walk(schema["items"], part, f"{path}[{number}]")
    elif kind == "array":
        yield _mismatch(value, path, "array")
    elif kind:
        yield from _scalar(kind, schema.get("format", ""), value, path)


def _object(schema: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _mismatch(value, path, "object")
        return
    known, free = schema.get("properties", {}), schema.get("additionalProperties")
    for name, part in value.items():
        inner = f"{path}.{name}" if path else name
        if name in known:
            yield from _walk(known[name], part, inner)
        elif isinstance(free, dict):
            yield from _walk(free, part, inner)
        elif known:
            yield f'unknown field "{inner}"'
    for name in schema.get("required", ()):
        if value.get(name) is None:
            yield f"{path}.{name}".lstrip(".") + ": Required value"


def _scalar(kind: str, form: str, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, _TYPES[kind]) or (kind != "boolean" and isinstance(value, bool)):
        yield _mismatch(value, path, form or kind)
    elif form == "int32" and not -(1 << 31) <= value < 1 << 31:
        yield _mismatch(value, path, form)
    elif form == "byte":
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error:
            yield f"{path}: illegal base64 data"


def _mismatch(value: Any, path: str, wanted: str) -> str:
    return f"cannot unmarshal {value!r} into Go struct field {path} of type {wanted}"


def without_nulls(item: Object) -> Object:
    """A field that is null is one that is not there."""
    return {name: _clean(part) for name, part in item.items() if part is not None}


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return without_nulls(value)
    return [_clean(part) for part in value] if isinstance(value, list) else value
