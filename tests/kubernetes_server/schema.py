"""Checks objects against the OpenAPI schema of a current Kubernetes, and says what is wrong in
the API server's words for ``fieldValidation=Strict``.

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

from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import Object, Resource

VERSION = "1.36"
"""The Kubernetes whose schema it is, whichever version the server plays."""

_QUANTITY = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[EPTGMK]i?|[EPTGMk]|Ki|[num])?$")
_PREFIX = "io.k8s.apimachinery.pkg."
_KINDS = {
    str: "string",
    bool: "bool",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
}


@functools.cache
def _definitions() -> dict[str, Any]:
    found = importlib.util.find_spec("kubernetes_validate")
    assert found and found.origin, "kubernetes-validate is not installed: run 'make setup'"
    folder = Path(found.origin).parent / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"
    loaded: dict[str, Any] = json.loads((folder / "_definitions.json").read_text("utf-8"))["$defs"]
    return loaded


def check(resource: Resource, item: Any) -> None:
    """Refuse an object that is not of the resource's kind, or has a field that is not known."""
    if not isinstance(item, dict):
        raise Refused(400, "the object provided is unrecognized (must be of type Object)")
    named = (item.get("apiVersion", resource.api_version), item.get("kind", resource.kind))
    if named != (resource.api_version, resource.kind):
        raise Refused(
            400,
            f"the API version in the data ({named[0]}) and kind ({named[1]}) do not match the"
            f" expected {resource.api_version}, {resource.kind}",
        )
    group = (resource.group or "core").partition(".")[0]
    name = f"io.k8s.api.{group}.{resource.version}.{resource.kind}"
    wrong = list(_walk({"$ref": f"#/$defs/{name}"}, item, ""))
    head = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
    types = [it for it in wrong if not it.startswith("unknown") and not it.startswith("missing")]
    if types:
        raise Refused(400, f"{head}: json: cannot unmarshal {types[0]}")
    if unknown := [it for it in wrong if it.startswith("unknown")]:
        raise Refused(400, f"{head}: strict decoding error: {', '.join(unknown)}")
    if missing := [it.removeprefix("missing ") for it in wrong]:
        shown = item.get("metadata", {}).get("name", "")
        raise Refused(422, f'{resource.kind} "{shown}" is invalid: {missing[0]}: Required value')


def _walk(schema: Any, value: Any, path: str) -> Iterator[str]:
    reference = schema.get("$ref", "").removeprefix("#/$defs/")
    if value is None:
        return
    if reference.endswith(".Quantity"):
        if not (isinstance(value, str | int | float) and _QUANTITY.match(str(value))):
            yield f'into Go struct field {path}: quantities must match the regular expression, not "{value}"'
        return
    if reference.endswith(".IntOrString"):
        if not isinstance(value, str | int):
            yield _mismatch(value, path, "intstr.IntOrString")
        return
    if reference:
        schema = _definitions()[reference]
    expected = schema.get("type")
    kind = (
        next((it for it in expected if it != "null"), None)
        if isinstance(expected, list)
        else expected
    )
    if kind == "object" or "properties" in schema:
        yield from _object(schema, value, path)
    elif kind == "array":
        if not isinstance(value, list):
            yield _mismatch(value, path, "[]")
            return
        for number, part in enumerate(value):
            yield from _walk(schema["items"], part, f"{path}[{number}]")
    elif kind:
        yield from _scalar(kind, schema, value, path)


def _object(schema: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _mismatch(value, path, "object")
        return
    known = schema.get("properties")
    free = schema.get("additionalProperties")
    for name, part in value.items():
        inner = f"{path}.{name}" if path else name
        if known and name in known:
            yield from _walk(known[name], part, inner)
        elif isinstance(free, dict):
            yield from _walk(free, part, inner)
        elif known:
            yield f'unknown field "{inner}"'
    for name in schema.get("required", ()):
        if value.get(name) is None:
            yield f"missing {path}.{name}".replace("missing .", "missing ")


def _scalar(kind: str, schema: Any, value: Any, path: str) -> Iterator[str]:
    right = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
    }[kind]
    if not right:
        yield _mismatch(value, path, schema.get("format", kind))
    elif (
        kind == "integer" and not -(1 << 31) <= value < 1 << 31 and schema.get("format") == "int32"
    ):
        yield f"number {value} into Go struct field {path} of type int32"
    elif schema.get("format") == "byte":
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error:
            yield f"string into Go struct field {path} of type []byte: illegal base64 data"


def _mismatch(value: Any, path: str, wanted: str) -> str:
    return f"{_KINDS.get(type(value), 'value')} into Go struct field {path} of type {wanted}"


def without_nulls(item: Object) -> Object:
    """A field that is null is one that is not there."""
    return {name: _clean(part) for name, part in item.items() if part is not None}


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return without_nulls(value)
    return [_clean(part) for part in value] if isinstance(value, list) else value
