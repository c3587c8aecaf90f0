"""Where images live: an image layout directory, or a registry of the distribution API."""

from __future__ import annotations

from .layout import Layout
from .protocol import Registry, digest_tag

__all__ = ["Layout", "Registry", "digest_tag"]
