"""Runs: submitting, finding again, running again."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.jobs import Job, JobArray
from clustrix_containers.api.options import Options, Resources
from clustrix_containers.api.status import State
from clustrix_containers.clusters import Cluster, open_cluster, staging
from clustrix_containers.clusters.task import Task
from clustrix_containers.config import file as configuration
from clustrix_containers.errors import ClusterError, InsideImageError
from clustrix_containers.oci.model import Image
from clustrix_containers.oci.progress import shown
from clustrix_containers.worker.contract import (
    ENTRY,
    INSIDE,
    LABEL_ARRAY,
    LABEL_COUNT,
    LABEL_FUNCTION,
)

from .record import Record, Run
from .session import Session

if TYPE_CHECKING:
    from clustrix_containers.registry.layout import Layout

_log = logging.getLogger("clustrix_containers")

RESOURCES = ("cpus", "memory", "timeout", "gpus", "shm", "env")
"""The options of a target that say what its elements get."""

_OURS = (*RESOURCES, "registry")
"""The options of a target that its cluster does not know."""


def record() -> Record:
    """This user's run record."""
    return Record(configuration.paths().state)


def refuse_inside() -> None:
    """InsideImageError where this code runs inside an image of ours."""
    if os.environ.get(INSIDE) == "1":
        raise InsideImageError(
            "submit and map cannot be called inside an image: the script would submit itself again",
            hint='Put the call under `if __name__ == "__main__":`, so that only your own process runs it.',
        )


def new_id(name: str) -> str:
    """A run id: the function's name and eight random characters, a valid DNS label (RFC 1123)."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-") or "run"
    if not slug[0].isalpha():
        slug = f"f-{slug}"
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    return f"{slug}-{''.join(secrets.choice(alphabet) for _ in range(8))}"


def launch(
    image: Image,
    name: str,
    count: int,
    options: Options,
    *,
    main: Path | None,
    main_module: Callable[[], ModuleType],
    array: bool,
    built: bool,
    trust: bool = True,
) -> Session:
    """Push, record, submit and watch a run of ``image``."""
    refuse_inside()
    target, cluster, resources = choose(options)
    reference = _place(image, cluster, target, options)
    details = {
        "main": str(main) if main else None,
        "client": os.getpid(),
        "argv": sys.argv[:1],
    }
    run = _intent(image, name, count, options, target, resources, reference, array)
    run = replace(run, details={**run.details, **details})
    book = record()
    # Before the target is asked anything: it may be out of reach until this process has ended.
    directory = book.intend(run, built=built)
    task = _task(run, directory)
    how = cluster.choices(task)
    _log.info("%s on %s: %s", run.id, target.name, how or target.type)
    ids = cluster.submit(task)
    book.update(run.id, state="submitted", ids=_pack(ids), how=how)
    run = replace(run, details={**run.details, "how": how})
    session = _session(run, cluster, ids, main_module, trust)
    session.watch()
    return session


def preview(image: Image, name: str, count: int, options: Options, *, array: bool) -> str:
    """What submitting a run of ``image`` would make on its target; nothing is pushed or recorded."""
    target, cluster, resources = choose(options)
    reference = f"{_repository(target, options)}@{image.digest}"
    run = _intent(image, name, count, options, target, resources, reference, array)
    return cluster.preview(_task(run, Path()))


def _intent(
    image: Image,
    name: str,
    count: int,
    options: Options,
    target: configuration.Target,
    resources: Resources,
    reference: str,
    array: bool,
) -> Run:
    details = {
        "options": _plain(target.options),
        "resources": _plain(asdict(resources)),
        "max_parallel": options.max_parallel,
        "retries": options.retries,
        "reference": reference,
        "command": list(image.settings.get("Entrypoint") or ()),
        "array": array,
    }
    return Run(new_id(name), name, image.digest, count, target.name, target.type, details)


def _session(
    run: Run,
    cluster: Cluster,
    ids: Sequence[str],
    main_module: Callable[[], ModuleType],
    trust: bool,
) -> Session:
    book = record()
    directory = book.run_directory(run.id)

    def again(elements: tuple[int, ...], attempt: int) -> Sequence[str]:
        task = replace(_task(run, directory), elements=elements, attempt=attempt)
        new = cluster.submit(task)
        book.move(run.id, dict(zip(elements, new, strict=True)), attempt)
        return new

    def done() -> None:
        states = Counter(job.status.state for job in session.jobs)
        book.update(run.id, state="done", seen=seen(states, time.time()))

    session = Session(run, cluster, ids, directory, main_module, trust, done, again)
    return session


def seen(states: Mapping[State, int], at: float) -> dict[str, Any]:
    """How many elements were in which state at a time (seconds since the epoch), for the record."""
    return {"at": at, "states": {state.value: count for state, count in states.items()}}


def known_ids(run: Run) -> list[str]:
    """The ids of a run's elements, as the record has them; none before its target has given any."""
    packed = run.details.get("ids")
    ids = list(_unpack(packed, run.count)) if packed is not None else []
    for element, (_, name) in record().moved(run).items():
        ids[element] = name
    return ids


def _place(image: Image, cluster: Cluster, target: configuration.Target, options: Options) -> str:
    """Put the image where the target finds it; the reference that it runs it by."""
    if not cluster.pulls:
        return staging.to_layout(image)
    repository = _repository(target, options)
    staging.to_layout_if_complete(image)
    with shown() as progress:
        return staging.to_registry(image, repository, progress=progress)


def _repository(target: configuration.Target, options: Options) -> str:
    found = options.registry or target.options.get("registry") or configuration.load().registry
    if not found:
        raise target.error(
            "registry",
            "images are pulled from a registry there, and none is named",
            "Set registry: (host[:port]/name) for the target or at the top of clustrix.yml,"
            " or CLUSTRIX_REGISTRY.",
        )
    return str(found)


def choose(options: Options) -> tuple[configuration.Target, Cluster, Resources]:
    """Where a run with these options goes, and what its elements get; errors before any work."""
    config = configuration.load()
    target = config.target(options.on)
    resources = options.resources(default_resources(config, target.options))
    return target, open_target(target), resources


def attach(run_id: str, *, on: str | None = None, watch: bool = True) -> Session:
    """The session of a run, from any process: of this user's record, or found on the target ``on``."""
    refuse_inside()
    book = record()
    run = _known(run_id, on, book)
    target = configuration.Target(run.target, run.type, run.details.get("options") or {})
    cluster = open_target(target)
    packed = run.details.get("ids")
    directory = book.run_directory(run.id)
    if packed is None:
        # The client died between intent and reply. Submitting is idempotent: this adopts what is there.
        ids = cluster.submit(_task(run, directory))
        book.update(run.id, state="submitted", ids=_pack(ids))
    else:
        ids = _unpack(packed, run.count)
    session = _session(
        run,
        cluster,
        ids,
        lambda: load_main(run.image, run.details.get("main")),
        book.built(run.image),
    )
    session.move(book.moved(run))
    if watch:
        session.watch()
    return session


def _known(run_id: str, on: str | None, book: Record) -> Run:
    """The run as the record has it; one that only its cluster knows is recorded first."""
    try:
        return book.run(run_id)
    except ClusterError:
        if on is None:
            raise
    target = configuration.load().target(on)
    found = open_target(target).find(run_id)
    if found is None:
        raise ClusterError(
            f"neither this user's record nor the target {target.name!r} knows a run {run_id!r}",
            run=run_id,
        )
    details = {
        "options": _plain(target.options),
        "resources": _plain(asdict(found.resources)),
        "retries": found.retries,
        "reference": found.image,
        "command": list(found.command),
        "array": found.array,
        "ids": _pack(found.ids),
    }
    run = Run(
        id=found.run,
        name=found.name,
        image=found.image.rpartition("@")[2],
        count=found.count,
        target=target.name,
        type=target.type,
        details=details,
        state="submitted",
    )
    book.intend(run, built=False, key=found.key)
    return run


def _task(run: Run, directory: Path) -> Task:
    details = run.details
    return Task(
        run=run.id,
        name=run.name,
        image=details["reference"],
        elements=range(run.count),
        resources=Resources(**details["resources"]),
        directory=directory,
        max_parallel=details.get("max_parallel"),
        command=tuple(details.get("command") or ()),
        array=bool(details.get("array")),
        retries=int(details.get("retries") or 0),
    )


def handle(session: Session) -> Job | JobArray:
    """What the user holds of a session: a JobArray where it came from ``map``, else a Job."""
    return JobArray(session, session.jobs) if session.is_array else session.jobs[0]


def load_main(digest: str, main: str | None) -> ModuleType:
    """The script that a run's types belong to: this process's own, or that of the image's code."""
    import json

    from clustrix_containers.capture import pickling
    from clustrix_containers.image import build as builder

    def source() -> bytes:
        files = builder.read_code(staging.layout().image(digest))
        return files[json.loads(files[ENTRY])["script"]]

    return pickling.script_module(Path(main) if main else None, source)


def rerun(digest: str, options: Options, *, trust: bool) -> Session:
    """Run the image ``digest`` again: the same bytes, so the same call.

    ``digest`` is that of an image in the layout (a prefix will do), or a registry reference with
    a digest. Results of an image that this record did not build stay bytes unless ``trust``.
    """
    layout = staging.layout()
    image = find_image(digest, layout)
    built = record().built(image.digest)
    labels = image.settings.get("Labels") or {}
    count = int(labels.get(LABEL_COUNT, "1"))
    name = str(labels.get(LABEL_FUNCTION, "run")).rpartition(".")[2]
    return launch(
        image,
        name,
        count,
        options,
        main=None,
        main_module=lambda: load_main(image.digest, None),
        array=labels.get(LABEL_ARRAY) == "1",
        built=False,
        trust=built or trust,
    )


def find_image(text: str, layout: Layout) -> Image:
    """An image by digest (or its start) in the layout, or by reference from its registry."""
    from clustrix_containers.oci.model import Reference
    from clustrix_containers.registry import Remote, fetch_layers

    bare = text.removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{6,64}", bare):
        found = layout.find(f"sha256:{bare}")
        if len(found) == 1:
            return layout.image(found[0])
        if found:
            raise ClusterError(f"{text!r} is the start of {len(found)} images: {', '.join(found)}")
        raise ClusterError(
            f"no image {text} here",
            hint="Give a reference with its registry: registry/repository@sha256:…",
        )
    reference = Reference.parse(text)
    remote = Remote(reference)
    image = remote.image(reference.digest or reference.tag or "latest")
    layout.push(image, fetch=fetch_layers(configuration.paths().cache / "blobs" / "sha256"))
    return layout.image(image.digest)


def open_target(target: configuration.Target) -> Cluster:
    """The cluster of a target of clustrix.yml; what elements get there is not the cluster's to know."""
    own = {key: value for key, value in target.options.items() if key not in _OURS}
    try:
        return open_cluster(target.type, own)
    except ClusterError as error:
        option = error.fields.get("option")
        if option is None:
            raise
        raise target.error(option, error.message, error.hint) from error


def default_resources(config: configuration.Config, options: Mapping[str, Any]) -> Resources:
    """What an element gets where neither decorator nor call says anything."""
    said: dict[str, Any] = {**config.resources}
    for name in RESOURCES:
        if name in options:
            said[name] = options[name]
    return Options(**said).resources(Resources())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _pack(ids: Sequence[str]) -> Any:
    """Ids that are ``prefix + index`` are kept as the prefix: an array of any size is one row."""
    if ids:
        prefix = ids[0][:-1]
        if all(identity == f"{prefix}{index}" for index, identity in enumerate(ids)):
            return {"prefix": prefix}
    return list(ids)


def _unpack(packed: Any, count: int) -> Sequence[str]:
    if isinstance(packed, dict):
        return [f"{packed['prefix']}{index}" for index in range(count)]
    return [str(item) for item in packed]
