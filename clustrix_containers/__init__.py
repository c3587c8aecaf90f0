"""One Python call becomes one OCI image digest, and that digest runs anywhere.

The public names, nothing else: importing this imports nothing but the standard library.
"""

from __future__ import annotations

from . import errors
from .contract import VERSION
from .function import Executor, Function, attach, function, image_directory
from .futures import Job, JobArray
from .options import Options

__version__ = VERSION
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
