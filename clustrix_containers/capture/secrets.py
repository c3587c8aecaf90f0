"""Known credentials in what would travel: formats that their issuers document, and this process's own.

A secret's value is never part of a message; its kind is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from clustrix_containers.errors import CaptureError

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
        # The marker alone is also in code that looks for keys.
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY-----(?:\s|\\[nr]|[\"'+,()\\])*(?:Proc-Type|[A-Za-z0-9+/]{24})",
    ),
)

_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY", re.IGNORECASE)
_MIN_LENGTH = 12
_KEY_NAMES = {"id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"}
_KEY_SUFFIXES = (".key", ".p12", ".pfx", ".jks", ".keystore", ".ppk")
_CREDENTIAL_FILES = {".netrc", ".pypirc", ".pgpass", ".git-credentials", ".htpasswd"}


def find_secret(data: str | bytes) -> str | None:
    """The kind of the first secret in ``data`` (``"a GitHub token"``), or ``None``."""
    found = locate_secret(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    return found[0] if found else None


def locate_secret(data: bytes) -> tuple[str, int] | None:
    """Kind and offset of the first secret in ``data``, or ``None``."""
    for kind, marks, pattern in _PATTERNS:
        if not any(mark in data for mark in marks):
            continue
        for match in re.finditer(pattern, data):
            # The example keys of AWS's documentation are AKIA…EXAMPLE.
            if not match.group().endswith(b"EXAMPLE"):
                return kind, match.start()
    for name, value in environment():
        at = data.find(value)
        if at >= 0:
            return f"the value of the environment variable {name}", at
    return None


def environment() -> tuple[tuple[str, bytes], ...]:
    """This process's secrets by variable name, without paths and short values."""
    return tuple(
        (name, value.encode("utf-8", "surrogateescape"))
        for name, value in os.environ.items()
        if len(value) >= _MIN_LENGTH and _NAME.search(name) and not value.startswith("/")
    )


def secret_error(holder: str, kind: str, **fields: object) -> CaptureError:
    """The error for a secret of this kind in ``holder`` (a variable, or ``file:line``)."""
    return CaptureError(
        f"{holder} holds {kind}, and an image can be read by everyone who can pull it",
        hint="Read it from the environment when the function runs. If it is not a secret, "
        "pass allow_secrets=True.",
        kind=kind,
        **fields,
    )


def refuse_secret(content: bytes, name: str) -> None:
    """Raise a CaptureError naming ``name`` and the line if there is a secret in ``content``."""
    found = locate_secret(content)
    if found is not None:
        kind, at = found
        line = content.count(b"\n", 0, at) + 1
        raise secret_error(f"{name}:{line}", kind, path=name, line=line)


_clean: set[tuple[str, int, int, int, int]] = set()


def refuse_secret_in(path: Path) -> None:
    """As :func:`refuse_secret`; a file that was clean and has not changed is not read again."""
    status = path.stat()
    key = (str(path), status.st_ino, status.st_mtime_ns, status.st_size, hash(environment()))
    if key not in _clean:
        refuse_secret(path.read_bytes(), str(path))
        _clean.add(key)


def secret_name(path: Path) -> str | None:
    """Why a file of this name never travels, or ``None``."""
    name = path.name
    if name == ".env" or name.startswith(".env.") or name.endswith(".env"):
        return "environment files hold secrets"
    if name in _KEY_NAMES or name.endswith(_KEY_SUFFIXES):
        return "it is named like a private key"
    if name in _CREDENTIAL_FILES:
        return "it holds credentials"
    if ".git" in path.parts or ".hg" in path.parts or ".svn" in path.parts:
        return "it belongs to a version control system"
    return None
