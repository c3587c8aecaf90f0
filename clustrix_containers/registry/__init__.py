"""Where images are stored: an image layout directory, or a registry of the distribution API."""

from __future__ import annotations

from .layout import Layout
from .manifests import digest_tag
from .remote import Remote, fetch_layers

__all__ = ["Layout", "Remote", "digest_tag", "fetch_layers"]
