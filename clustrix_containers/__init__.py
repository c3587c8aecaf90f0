"""One Python call becomes one OCI image digest, and that digest runs anywhere."""

from __future__ import annotations

__version__ = "0.1.0"
