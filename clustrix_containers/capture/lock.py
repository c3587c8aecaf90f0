"""A Lock: base and distributions, pinned, for one Python and one platform.

Form: ``pylock.toml`` (PEP 751, https://packaging.python.org/en/latest/specifications/pylock-toml/)
with our own table ``[tool.clustrix-containers]``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel file: its name, sha256 (hex) and size in bytes; ``url`` where it came from, if known."""

    filename: str
    sha256: str
    size: int
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned distribution: from ``wheel``, or from the installed tree whose RECORD digest is ``tree``."""

    name: str
    version: str
    wheel: Wheel | None
    tree: str | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """What an image is made of, except for the user's own code.

    ``python`` is ``X.Y``; ``platform`` is ``linux/amd64``; ``base`` is ``repo@sha256:…`` or
    ``packed:sha256:…`` (the digest of the packed interpreter's layers).
    """

    python: str
    platform: str
    base: str
    packages: tuple[Package, ...]
