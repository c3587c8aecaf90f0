"""The handle of a run again, in any process: from this user's record, or from its cluster."""

from __future__ import annotations

from clustrix_containers.api.jobs import Job, JobArray
from clustrix_containers.config import file as configuration
from clustrix_containers.errors import ClusterError

from . import images
from .destination import open_target
from .handles import pack, unpack
from .record import Record, Run, open_record
from .watched import WatchedRun


def attach(run_id: str, *, on: str | None = None, watch: bool = True) -> WatchedRun:
    """A run, from any process: of this user's record, or found on the target ``on``."""
    record = open_record()
    run = _known(run_id, on, record)
    cluster = open_target(target_of(run))
    if not run.submitted:
        # The client died between intent and reply. Submitting is idempotent: this adopts what is there.
        handles = cluster.submit(run.task(record.run_directory(run.id)))
        run = record.update(run.id, more=handles, state="submitted")
    watched = WatchedRun(
        run,
        cluster,
        unpack(run.handles, run.id),
        record,
        lambda: images.load_main(run.image, run.main),
        trust=record.built(run.image),
    )
    if watch:
        watched.watch()
    return watched


def handle(run: WatchedRun) -> Job | JobArray:
    """What the user holds of a run: a JobArray where it came from ``map``, else a Job."""
    return JobArray(run, run.jobs) if run.is_array else run.jobs[0]


def target_of(run: Run) -> configuration.Target:
    """The target that a run went to, as it was configured then."""
    return configuration.Target(run.target, run.type, run.target_options)


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
