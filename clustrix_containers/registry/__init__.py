"""Where images live: an image layout directory, or a registry of the distribution API."""

from __future__ import annotations

from .layout import Layout
from .protocol import Registry, digest_tag
from .remote import Remote, fetch_layers

__all__ = ["Layout", "Registry", "Remote", "digest_tag", "fetch_layers"]
