"""From a callable to an image: capture, distributions, lock, base, build. No run yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.options import Options
from clustrix_containers.capture.bundle import Bundle, Distribution
from clustrix_containers.config import file as configuration
from clustrix_containers.config.paths import paths
from clustrix_containers.errors import DependencyError, ImageError
from clustrix_containers.oci.model import Image, Reference
from clustrix_containers.packages import lock
from clustrix_containers.packages.lock import Lock, Wheel
from clustrix_containers.remote.progress import Progress, silent
from clustrix_containers.worker.contract import package_version

if TYPE_CHECKING:
    from clustrix_containers.packages.resolution import Resolution

_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """All that was decided about a function's image, before anything is built."""

    bundle: Bundle
    resolution: Resolution
    lock: Lock
    base: Image
    packed: Mapping[str, str] = field(default_factory=dict)
    """Why a distribution, by name, is packed from its installed files and not from a wheel."""


def plan(
    function: Callable[..., Any],
    options: Options,
    *,
    references: Collection[str] = (),
    config: configuration.Config | None = None,
    progress: Progress = silent,
) -> ImagePlan:
    """Decide what goes into the image of ``function``.

    ``references`` are modules that the arguments refer to. A lock file that the options or
    ``clustrix.yml`` (``config``, read if it is not given) name is obeyed. Raises CaptureError,
    DependencyError or ImageError; each names what is wrong and the way out.
    """
    path = options.lock or (configuration.load() if config is None else config).lock
    if path is None:
        return _plan(function, options, references, progress)
    from clustrix_containers.image.runtime import check_runtime

    locked = lock.read(Path(path))
    if locked.python != _PYTHON:
        raise DependencyError(
            f"the lock {path} is for Python {locked.python}, this is Python {_PYTHON}",
            hint=f"Use Python {locked.python}, or lock again: cxc lock.",
            path=str(path),
        )
    check_runtime(locked)
    bundle, resolution = _needs(function, options, references)
    base = _locked_base(locked, options)
    _check_packages(locked, resolution.distributions)
    packed = {item.name: f"locked in {path}" for item in locked.packages if item.wheel is None}
    return ImagePlan(bundle, resolution, locked, base, packed)


def write_lock(
    function: Callable[..., Any], options: Options, path: Path, *, progress: Progress = silent
) -> Lock:
    """Lock what goes into the image of ``function`` as of now, in the file ``path``.

    A lock that is there already is not obeyed but replaced. Raises as :func:`plan` does.
    """
    made = _plan(function, options, (), progress).lock
    lock.write(path, made)
    return made


def _plan(
    function: Callable[..., Any],
    options: Options,
    references: Collection[str],
    progress: Progress,
) -> ImagePlan:
    from clustrix_containers.image import runtime
    from clustrix_containers.packages.lock import pin
    from clustrix_containers.packages.wheels import wheelhouse

    bundle, resolution = _needs(function, options, references)
    base = find_base(options.base, python=options.python)
    located = wheelhouse.locate(resolution.distributions, cache=paths().cache, progress=progress)
    locked = Lock(
        base=_name(options.base, base),
        python=_PYTHON,
        platform=str(base.platform),
        packages=pin(resolution.distributions, located.wheels, resolution.hashes),
        runtime=runtime.runtime(),
        cloudpickle=runtime.cloudpickle_component(),
        client=package_version(),
    )
    return ImagePlan(bundle, resolution, locked, base, located.reasons)


def _needs(
    function: Callable[..., Any], options: Options, references: Collection[str]
) -> tuple[Bundle, Resolution]:
    from clustrix_containers.capture import callables
    from clustrix_containers.packages import resolution

    bundle = callables.capture(
        function,
        modules=options.modules,
        files=options.files,
        references=references,
        allow_secrets=options.allow_secrets,
    )
    resolved = resolution.resolve(
        bundle.imports,
        packages=options.packages,
        everything=options.whole_environment,
        requirements=Path(options.requirements) if options.requirements else None,
    )
    return bundle, resolved


def _check_packages(locked: Lock, needed: Collection[Distribution]) -> None:
    """DependencyError unless what is locked is what is installed, with the same files."""
    from clustrix_containers.packages.installed import Installed, search_path
    from clustrix_containers.packages.wheels import wheelhouse

    cache = paths().cache
    wheelhouse.obtain(locked.packages, cache=cache)
    located = wheelhouse.locate(tuple(needed), cache=cache, fetch=False).wheels

    def installed_from(wheel: Wheel, distribution: Distribution) -> bool:
        known = located.get(distribution.name)
        if known is not None and known.sha256 == wheel.sha256:
            return True
        path = wheelhouse.wheel_path(cache, wheel)
        return wheelhouse.difference(path, Installed.of(distribution).rows) is None

    # What is packed from its installed files must be the same even if nothing here imports it.
    names = {distribution.name for distribution in needed}
    trees = {package.name for package in locked.packages if package.wheel is None} - names
    others = [
        Distribution(name, found.version, (), found.root, found.info)
        for name, found in (search_path().by_name.items() if trees else ())
        if name in trees
    ]
    lock.check(locked, (*needed, *others), installed_from)


def _locked_base(locked: Lock, options: Options) -> Image:
    asked = options.base
    if not locked.base.startswith(("packed:sha256:", "dockerfile:sha256:")):
        chosen = Reference.parse(asked) if asked and not Path(asked).is_file() else None
        # A tag may have moved since.
        if asked is None or (
            chosen and not chosen.digest and chosen.name == Reference.parse(locked.base).name
        ):
            asked = locked.base
    base = find_base(asked, python=options.python)
    if (name := _name(asked, base)) != locked.base or str(base.platform) != locked.platform:
        raise ImageError(
            f"the lock needs the base {locked.base} ({locked.platform}),"
            f" the base here is {name} ({base.platform})",
            hint="Use that base (for a packed one: the Python installation that the lock was made"
            " with), or lock again: cxc lock.",
            locked=locked.base,
            base=name,
        )
    return base


def find_base(base: str | None, *, python: str | None = None) -> Image:
    """The base image: what the user names, else the running interpreter, packed.

    The choice never depends on whether a network is there: the same function would have another
    digest on a train.
    """
    from clustrix_containers.image.base import as_base, dockerfile, interpreter

    cache = paths().cache
    if base is None:
        return interpreter.packed(cache)
    if Path(base).is_file():
        return dockerfile.from_dockerfile(Path(base), cache, python=python)
    from clustrix_containers.registry import Remote

    reference = Reference.parse(base)
    version = reference.digest or reference.tag
    if version is None:
        raise ImageError(
            f"the base {base!r} has neither a tag nor a digest",
            hint=f"Write {base}@sha256:… so that the same bytes are used every time.",
        )
    return as_base(Remote(reference).image(version), str(reference), python=python)


def _name(asked: str | None, base: Image) -> str:
    """What a Lock calls the base: a digest that was found, never a tag, which can move."""
    if asked is None:
        return f"packed:{base.digest}"
    origin = base.layers[0].origin if base.layers else None
    if origin is None or Path(asked).is_file():
        return f"dockerfile:{base.digest}"
    return str(origin)


def build(plan: ImagePlan, *, progress: Progress = silent) -> Image:
    """The image of a plan, without a call; its blobs are in the cache."""
    from clustrix_containers.image import build as builder

    return builder.build(
        plan.bundle,
        plan.lock,
        plan.base,
        cache=paths().cache,
        progress=progress,
    )
