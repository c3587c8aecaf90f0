"""From call to handle: pickled, built, staged, recorded, submitted, watched."""

from __future__ import annotations

import logging
import pickle
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustrix_containers.api.options import Options
from clustrix_containers.capture.secrets import find_secret
from clustrix_containers.config.paths import paths
from clustrix_containers.errors import CaptureError
from clustrix_containers.oci.model import Image
from clustrix_containers.remote.progress import shown
from clustrix_containers.runs.watching.watched import WatchedRun
from clustrix_containers.worker.contract import LABEL_ARRAY, LABEL_COUNT, LABEL_FUNCTION

from . import plan as planning
from .attach import find_image
from .destination import Destination, resolve
from .record import Run, open_record

_log = logging.getLogger("clustrix_containers")

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Calls:
    """The image of some calls, and what their run is called. ``main`` is the calling script."""

    image: Image
    name: str
    count: int
    array: bool
    main: Path | None = None


def submit(
    function: Callable[..., Any], calls: Iterable[Call], options: Options, *, array: bool
) -> WatchedRun:
    """Submit every call of ``function`` as one run; gives the run, which is being watched."""
    destination = resolve(options)
    built = _build(function, calls, options, destination, array=array)
    return _start(built, options, destination, built_here=True, trust=True)


def rerun(digest: str, options: Options, *, trust: bool) -> WatchedRun:
    """Run the image ``digest`` again: the same bytes, so the same call.

    ``digest`` is that of an image in the layout (a prefix will do), or a registry reference with
    a digest. Results of an image that this record did not build stay bytes unless ``trust``.
    """
    destination = resolve(options)
    image = find_image(digest)
    labels = image.settings.get("Labels") or {}
    again = _Calls(
        image,
        str(labels.get(LABEL_FUNCTION, "run")).rpartition(".")[2],
        int(labels.get(LABEL_COUNT, "1")),
        labels.get(LABEL_ARRAY) == "1",
    )
    destination.check_count(again.count, options)
    trusted = trust or open_record().built(image.digest)
    return _start(again, options, destination, built_here=False, trust=trusted)


def preview(function: Callable[..., Any], calls: Iterable[Call], options: Options) -> str:
    """What submitting would make on the target, as a person writes it. Only the image is built."""
    destination = resolve(options)
    built = _build(function, calls, options, destination, array=False)
    reference = f"{destination.repository}@{built.image.digest}"
    run = _describe(built, options, destination, reference)
    return destination.cluster.preview(run.task(Path()))


def _build(
    function: Callable[..., Any],
    calls: Iterable[Call],
    options: Options,
    destination: Destination,
    *,
    array: bool,
) -> _Calls:
    """The image with these calls in it; they are read once, in order."""
    from clustrix_containers.capture import pickling
    from clustrix_containers.image import build as builder

    references: set[str] = set()

    def pickles() -> Iterator[bytes]:
        for args, kwargs in calls:
            data, seen = pickling.dump_call(args, kwargs, function=function)
            if not options.allow_secrets:
                _refuse_secret(data, args, kwargs)
            references.update(seen)
            yield data

    with shown() as progress:
        layer, count = builder.call_layer(pickles(), cache=paths().cache)
        destination.check_count(count, options)
        plan = planning.plan(
            function,
            options,
            references=frozenset(references),
            config=destination.config,
            progress=progress,
        )
        image = planning.build(plan, progress=progress)
    labels = {
        **(image.settings.get("Labels") or {}),
        LABEL_COUNT: str(count),
        LABEL_ARRAY: str(int(array)),
    }
    name = plan.bundle.entry.name.rpartition(".")[2]
    image = image.append(layer).configure(Labels=labels)
    return _Calls(image, name, count, array, plan.bundle.main)


def _start(
    calls: _Calls, options: Options, destination: Destination, *, built_here: bool, trust: bool
) -> WatchedRun:
    """Stage, record, submit and watch."""
    cluster = destination.cluster
    with shown() as progress:
        reference = cluster.stage(calls.image, repository=destination.repository, progress=progress)
    run = _describe(calls, options, destination, reference)
    record = open_record()
    # Before the target is asked anything: it may be unreachable until this process has ended.
    directory = record.intend(run, built=built_here)
    task = run.task(directory)
    how = cluster.describe(task)
    _log.info("%s on %s: %s", run.id, run.target, how or run.type)
    handles = cluster.submit(task)
    run = record.update(run.id, more=handles, state="submitted", how=how)
    watched = WatchedRun(run, cluster, record, trust=trust)
    watched.watch()
    return watched


def _describe(calls: _Calls, options: Options, destination: Destination, reference: str) -> Run:
    target = destination.target
    return Run(
        id=_new_id(calls.name),
        name=calls.name,
        image=calls.image.digest,
        count=calls.count,
        target=target.name,
        type=target.type,
        reference=reference,
        array=calls.array,
        command=tuple(calls.image.settings.get("Entrypoint") or ()),
        resources=destination.resources,
        max_parallel=options.max_parallel,
        retries=options.retries,
        target_options=target.options,
        cluster_options=destination.options,
        main=str(calls.main) if calls.main else None,
    )


def _new_id(name: str) -> str:
    """A run id: the function's name and eight random characters, a valid DNS label (RFC 1123)."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-") or "run"
    if not slug[0].isalpha():
        slug = f"f-{slug}"
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    return f"{slug}-{''.join(secrets.choice(alphabet) for _ in range(8))}"


def _refuse_secret(data: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """CaptureError if a call's pickle holds what looks like a credential; never shows it."""
    kind = find_secret(data)
    if kind is None:
        return
    named = [(f"argument {index + 1}", value) for index, value in enumerate(args)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    offending = next((name for name, value in named if _holds_secret(value)), "an argument")
    raise CaptureError(
        f"{offending} looks like a secret ({kind}), and arguments are part of the image",
        hint="Read it in the container, or pass allow_secrets=True if it is not a secret.",
    )


def _holds_secret(value: object) -> bool:
    try:
        return find_secret(pickle.dumps(value)) is not None
    except Exception:
        return False
