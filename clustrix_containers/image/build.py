"""A Lock and a Bundle become an Image: base ┊ wheels ┊ bytecode ┊ runtime ┊ code, later ┊ call.

Everything but the code layer is recalled by one record, so a one-line edit costs one stat per
blob and a code layer that is made in memory. Same lock, same sources: same bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from clustrix_containers.capture.bundle import Bundle, bundle_files
from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import IN_MEMORY, Entry, write_layer
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.reading import read_files
from clustrix_containers.oci.store import Spool
from clustrix_containers.packages.lock import Lock
from clustrix_containers.remote.progress import Progress, silent
from clustrix_containers.worker.contract import (
    CALL,
    CODE,
    INSIDE,
    LABEL_FUNCTION,
    LABEL_PYTHON,
    LAYER_KIND,
    VENV,
    WORKER,
)

from .base import LABEL_INTERPRETER, LIBRARIES
from .layers import package_layers
from .runtime import check_runtime, runtime_layer

MAX_LAYERS = 127
"""What overlayfs takes."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENV = {
    "PYTHONNOUSERSITE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",  # noqa: S108
    "XDG_CACHE_HOME": "/tmp/.cache",  # noqa: S108
    "MPLCONFIGDIR": "/tmp/.cache/matplotlib",  # noqa: S108
    "NUMBA_CACHE_DIR": "/tmp/.cache/numba",  # noqa: S108
    INSIDE: "1",
}


def build(
    bundle: Bundle,
    lock: Lock,
    base: Image,
    *,
    cache: Path,
    progress: Progress = silent,
) -> Image:
    """The image of a captured callable, without arguments (see :func:`call_layer`).

    What the lock pins without a wheel is packed as it is installed on ``sys.path``. ``base`` has
    the labels that :func:`~clustrix_containers.image.base.as_base` adds. ImageError when a package
    cannot be packed, when the base's Python is not the lock's, when the lock needs another runtime
    or cloudpickle than this client has, or when there are too many layers.
    """
    interpreter, version = _python(base, lock)
    check_runtime(lock)
    image = base.append(
        *package_layers(lock, base, cache=cache, progress=progress),
        runtime_layer(interpreter, version, cache=cache),
        code_layer(bundle, cache=cache),
    )
    if len(image.layers) >= MAX_LAYERS:
        raise ImageError(
            f"the image would have {len(image.layers) + 1} layers, and {MAX_LAYERS} are the most",
            hint="Use a base with fewer layers.",
        )
    labels = {**base.settings["Labels"], LABEL_FUNCTION: bundle.entry.name}
    kept = {key: value for key, value in base.settings.items() if key not in ("Cmd", "Healthcheck")}
    layers = tuple(_without_libraries(layer) for layer in image.layers)
    return replace(image, settings=kept, layers=layers).configure(
        Env=_environment(base.settings.get("Env") or []),
        Entrypoint=[f"{VENV}/bin/python", WORKER],
        WorkingDir="/tmp",  # noqa: S108
        User="65534:65534",
        Labels=labels,
    )


def _without_libraries(layer: Layer) -> Layer:
    # The checks of this build have used it; in each manifest it would be a fifth of a push.
    notes = {key: text for key, text in layer.descriptor.annotations.items() if key != LIBRARIES}
    return layer.describe(annotations=notes)


def code_layer(bundle: Bundle, *, cache: Path) -> Layer:
    """The user's own files, the entry, and the pickle of a function that travels by value."""
    entries = []
    for path, content in bundle_files(bundle):
        executable = isinstance(content, Path) and os.access(content, os.X_OK)
        entries.append(Entry(f"{CODE[1:]}/{path}", content, 0o755 if executable else 0o644))
    return write_layer(entries, cache=cache, form="stored", kind="code", title=bundle.entry.name)


def read_code(image: Image) -> dict[str, bytes]:
    """The code layer's files by their paths below the code root: what the function was made of."""
    return {
        name.removeprefix(f"{CODE[1:]}/"): content
        for layer in image.kinds(LAYER_KIND, "code")
        for name, content in read_files(layer).items()
    }


def call_layer(calls: Iterable[bytes], *, cache: Path) -> tuple[Layer, int]:
    """A layer of arguments, one pickle of ``(args, kwargs)`` per element, and how many there are.

    Read once, in order, and never held together: 10,000 calls cost the memory of their index.
    """
    index, count = bytearray(), 0
    with Spool(cache, spill=IN_MEMORY) as data:
        for call in calls:
            index += struct.pack("<QQ", data.size, len(call))
            data.write(call)
            count += 1
        files = {"index": bytes(index), "data": data.content()}
        entries = [Entry(f"{CALL[1:]}/{name}", content) for name, content in files.items()]
        title = f"{count} calls" if count > 1 else "1 call"
        layer = write_layer(entries, cache=cache, form="stored", kind="call", title=title)
    return layer, count


def _python(base: Image, lock: Lock) -> tuple[str, str]:
    labels: Mapping[str, str] = base.settings["Labels"]
    interpreter, version = labels[LABEL_INTERPRETER], labels[LABEL_PYTHON]
    if ".".join(version.split(".")[:2]) != lock.python:
        raise ImageError(
            f"the lock is for Python {lock.python}, the base image has Python {version}",
            hint="Use a base image with that minor version, or lock again with this one.",
            lock=lock.python,
            base=version,
        )
    return interpreter, version


def _environment(base: Iterable[str]) -> list[str]:
    merged = dict(item.partition("=")[::2] for item in base)
    merged["PATH"] = f"{VENV}/bin:{merged.get('PATH') or _PATH}"
    merged.update(_ENV)
    return [f"{name}={value}" for name, value in merged.items()]
