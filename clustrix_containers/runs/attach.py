"""Runs and images of earlier, found again in any process: by run id, by digest."""

from __future__ import annotations

import re

from clustrix_containers.api.jobs import Job, JobArray
from clustrix_containers.clusters import staging
from clustrix_containers.config import file as configuration
from clustrix_containers.config.paths import paths
from clustrix_containers.errors import ClusterError
from clustrix_containers.oci.model import Image, Reference
from clustrix_containers.runs.watching.watched import WatchedRun

from .destination import open_target
from .record import Record, Run, open_record
from .record.handles import pack


def attach(run_id: str, *, on: str | None = None, watch: bool = True) -> WatchedRun:
    """A run, from any process: of this user's record, or found on the target ``on``."""
    record = open_record()
    run = _known(run_id, on, record)
    cluster = open_target(target_of(run))
    if not run.submitted:
        # The client died between intent and reply. Submitting is idempotent: this adopts what is there.
        handles = cluster.submit(run.task(record.run_directory(run.id)))
        run = record.update(run.id, more=handles, state="submitted")
    watched = WatchedRun(run, cluster, record, trust=record.built(run.image))
    if watch:
        watched.watch()
    return watched


def handle(run: WatchedRun) -> Job | JobArray:
    """What the user holds of a run: a JobArray where it came from ``map``, else a Job."""
    return JobArray(run, run.jobs) if run.is_array else run.jobs[0]


def target_of(run: Run) -> configuration.Target:
    """The target that a run went to, as it was configured then."""
    return configuration.Target(run.target, run.type, run.target_options)


def find_image(text: str) -> Image:
    """An image by digest (or its start) in the layout, or by reference from its registry."""
    from clustrix_containers.registry import Remote, fetch_layers

    layout = staging.layout()
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
    image = Remote(reference).image(reference.digest or reference.tag or "latest")
    layout.push(image, fetch=fetch_layers(paths().cache / "blobs" / "sha256"))
    return layout.image(image.digest)


def _known(run_id: str, on: str | None, record: Record) -> Run:
    """The run as the record has it; one that only its cluster knows is recorded first."""
    try:
        return record.run(run_id)
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
    task = found.task
    run = Run(
        id=task.run,
        name=task.name,
        image=task.image.rpartition("@")[2],
        count=len(task.elements),
        target=target.name,
        type=target.type,
        reference=task.image,
        array=task.array,
        command=task.command,
        resources=task.resources,
        retries=task.retries,
        target_options=target.options,
        cluster_options=task.options,
        handles=tuple(pack(found.handles)),
        state="submitted",
    )
    record.intend(run, built=False, key=found.key)
    return run
