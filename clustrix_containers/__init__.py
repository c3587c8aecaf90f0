"""One Python call becomes one OCI image digest, and that digest runs anywhere.

The public names, nothing else: importing this imports nothing but the standard library.
"""

from __future__ import annotations

from typing import Any

from . import errors
from .api.executor import Executor
from .api.function import Function, attach, function, image_directory
from .api.jobs import Job, JobArray
from .api.options import Options

__all__ = [
    "Executor",
    "Function",
    "Job",
    "JobArray",
    "Options",
    "attach",
    "errors",
    "function",
    "image_directory",
]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .worker.contract import package_version

    return package_version()
