"""From a callable to an image: capture, distributions, lock, base, build. No run yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.options import Options
from clustrix_containers.capture.bundle import Bundle, Note
from clustrix_containers.config import paths as configuration
from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import Image, Reference
from clustrix_containers.oci.progress import Progress, silent
from clustrix_containers.packages.lock import Lock

if TYPE_CHECKING:
    from clustrix_containers.packages.resolution import Resolution


@dataclass(frozen=True, slots=True)
class Plan:
    """All that was decided about a function's image, before anything is built."""

    bundle: Bundle
    resolution: Resolution
    lock: Lock
    base: Image
    packed: Mapping[str, str] = field(default_factory=dict)
    """Why a distribution, by name, is packed from its installed files and not from a wheel."""

    @property
    def notes(self) -> tuple[Note, ...]:
        return (*self.bundle.notes, *self.resolution.notes)


def plan(
    function: Callable[..., Any],
    options: Options,
    *,
    references: Collection[str] = (),
    progress: Progress = silent,
) -> Plan:
    """Decide what goes into the image of ``function``.

    ``references`` are modules that the arguments refer to. Raises CaptureError,
    DependencyError or ImageError; each names the thing and the way out.
    """
    from clustrix_containers.capture import callables
    from clustrix_containers.packages import lock, wheelhouse
    from clustrix_containers.packages import resolution as distributions

    bundle = callables.capture(
        function,
        modules=options.modules,
        files=options.files,
        references=references,
        allow_secrets=options.allow_secrets,
    )
    resolution = distributions.resolve(
        bundle.imports,
        packages=options.packages,
        everything=options.whole_environment,
        requirements=Path(options.requirements) if options.requirements else None,
    )
    cache = configuration.paths().cache
    base = find_base(options.base, python=options.python)
    located = wheelhouse.locate(resolution.distributions, cache=cache, progress=progress)
    locked = lock.lock(
        resolution.distributions,
        wheels=located.wheels,
        base=_name(options.base, base),
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        platform=str(base.platform),
        hashes=resolution.hashes,
    )
    return Plan(bundle, resolution, locked, base, located.reasons)


def find_base(base: str | None, *, python: str | None = None) -> Image:
    """The base image: what the user names, else the running interpreter, packed.

    The choice never depends on whether a network happens to be there: the same function
    would have another digest on a train.
    """
    from clustrix_containers.image import base as bases
    from clustrix_containers.image import dockerfile, interpreter

    cache = configuration.paths().cache
    if base is None:
        return interpreter.packed(cache)
    if Path(base).is_file():
        return dockerfile.from_dockerfile(Path(base), cache, python=python)
    from clustrix_containers.registry import Remote

    reference = Reference.parse(base)
    if reference.digest is None and reference.tag is None:
        raise ImageError(
            f"the base {base!r} has neither a tag nor a digest",
            hint=f"Write {base}@sha256:… so that the same bytes are used every time.",
        )
    return bases.from_registry(reference, Remote(reference), python=python)


def _name(asked: str | None, base: Image) -> str:
    """What a Lock calls the base: a digest that was found, never a tag, which can move."""
    if asked is None:
        return f"packed:{base.digest}"
    origin = base.layers[0].origin if base.layers else None
    if origin is None or Path(asked).is_file():
        return f"dockerfile:{base.digest}"
    return str(origin)


def build(plan: Plan, *, progress: Progress = silent) -> Image:
    """The image of a plan, without a call; its blobs lie in the cache."""
    from clustrix_containers.image import build as builder

    return builder.build(
        plan.bundle,
        plan.lock,
        plan.base,
        plan.resolution.distributions,
        cache=configuration.paths().cache,
        progress=progress,
    )
