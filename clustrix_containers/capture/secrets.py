"""Known credentials in what would travel: formats that their issuers document, and this process's own.

A secret's value is never part of a message; its kind is.
"""

from __future__ import annotations

import os
import re

_PATTERNS: tuple[tuple[str, tuple[bytes, ...], bytes], ...] = (
    ("an AWS access key", (b"AKIA", b"ASIA"), rb"A[KS]IA[A-Z0-9]{16}(?![A-Z0-9])"),
    ("a GitHub token", (b"gh",), rb"gh[pousr]_[A-Za-z0-9]{36}"),
    ("a GitHub token", (b"github_pat_",), rb"github_pat_[A-Za-z0-9_]{36}"),
    ("a GitLab token", (b"glpat-",), rb"glpat-[A-Za-z0-9_-]{20}"),
    ("a Hugging Face token", (b"hf_",), rb"hf_[A-Za-z0-9]{30}"),
    (
        "an OpenAI or Anthropic key",
        (b"sk-",),
        rb"sk-(?:(?:ant|proj|svcacct|admin)-[A-Za-z0-9_-]{20}|[A-Za-z0-9]{32})",
    ),
    ("a Stripe key", (b"k_live_",), rb"[sr]k_live_[A-Za-z0-9]{24}"),
    ("a Slack token", (b"xox",), rb"xox[abeoprs]-[A-Za-z0-9-]{10}"),
    ("a Google API key", (b"AIza",), rb"AIza[A-Za-z0-9_-]{35}"),
    ("a PyPI token", (b"pypi-AgEI",), rb"pypi-AgEI[A-Za-z0-9_-]{50}"),
    (
        "a private key",
        (b"PRIVATE KEY-----",),
        # The marker alone also stands in code that looks for keys.
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY-----(?:\s|\\[nr]|[\"'+,()\\])*(?:Proc-Type|[A-Za-z0-9+/]{24})",
    ),
)
_COMPILED = tuple((kind, marks, re.compile(pattern)) for kind, marks, pattern in _PATTERNS)

_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY", re.IGNORECASE)
_SHORTEST = 12


def find_secret(data: str | bytes) -> str | None:
    """The kind of the first secret in ``data`` (``"a GitHub token"``), or ``None``."""
    found = locate_secret(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    return found[0] if found else None


def locate_secret(data: bytes) -> tuple[str, int] | None:
    """Kind and offset of the first secret in ``data``, or ``None``."""
    for kind, marks, pattern in _COMPILED:
        if not any(mark in data for mark in marks):
            continue
        for match in pattern.finditer(data):
            # AWS's own documentation spells its invented keys AKIA…EXAMPLE.
            if not match.group().endswith(b"EXAMPLE"):
                return kind, match.start()
    for name, value in environment():
        at = data.find(value)
        if at >= 0:
            return f"the value of the environment variable {name}", at
    return None


def environment() -> tuple[tuple[str, bytes], ...]:
    """This process's secrets by variable name, without those that are paths or switches."""
    return tuple(
        (name, value.encode("utf-8", "surrogateescape"))
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _NAME.search(name) and not value.startswith("/")
    )
