"""Runs: submitting, watching, finding again, running again. Knows every stage from image to result."""

from __future__ import annotations

import concurrent.futures
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import config as configuration
from . import prepare
from .clusters import Cluster, open_cluster
from .contract import ENTRY, INSIDE, LABEL_ARRAY, LABEL_COUNT, LABEL_FUNCTION
from .errors import ClusterError, Error, InsideImageError, ResultLost, UntrustedResultError
from .futures import Job, JobArray, Ticker
from .jobs import Resources, State, Status, Task
from .oci import Image
from .options import Options
from .record import Record, Run

if TYPE_CHECKING:
    from .registry.layout import Layout
    from .results.outcome import Outcome

RESOURCES = ("cpus", "memory", "timeout", "gpus", "shm", "env")
"""The options of a target that say what its elements get."""

MARK_GRACE = 5.0
"""Seconds to wait for the mark of an element that its cluster says has ended."""


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


class Session:
    """One run and its jobs: asks the cluster what they do, and settles them."""

    def __init__(
        self,
        run: Run,
        cluster: Cluster,
        ids: Sequence[str],
        directory: Path,
        main: Callable[[], ModuleType],
        trust: bool,
    ) -> None:
        self._run, self._cluster, self._ids = run, cluster, ids
        self._directory = directory
        self._main = main
        self._trust = trust
        self.jobs = [Job(self, element) for element in range(run.count)]
        shortest, longest = cluster.poll_interval
        self._ticker = Ticker(shortest, longest)
        self._outcomes: dict[int, Outcome] = {}

    @property
    def run(self) -> str:
        return self._run.id

    @property
    def image(self) -> str:
        return self._run.image

    @property
    def is_array(self) -> bool:
        """Whether the run came from ``map``."""
        return bool(self._run.details.get("array"))

    def trust(self) -> None:
        """Unpickle this run's results though this user did not build its image."""
        self._trust = True

    def count_states(self) -> dict[State, int]:
        """How many elements are in which state, asked now."""
        counts: dict[State, int] = {}
        for status in self._cluster.states(self._ids).values():
            counts[status.state] = counts.get(status.state, 0) + 1
        return counts

    def save(self, job: Job, path: Path, timeout: float | None = None) -> None:
        """Write the verified pickle of a job's value to ``path``; its failure is raised."""
        from .results import outcome as outcomes

        concurrent.futures.wait([job], timeout)
        if not job.done():
            raise ClusterError(f"{self.run}/{job.element} is not done yet")
        outcome = self._outcomes.get(job.element)
        if outcome is None:
            job.result(0)
        else:
            outcomes.save(outcome, path)

    def logs(self, element: int, *, follow: bool = False) -> Iterator[bytes]:
        return self._cluster.logs(self._ids[element], follow=follow)

    def cancel(self, elements: Sequence[int]) -> None:
        self._cluster.cancel([self._ids[element] for element in elements])
        self._ticker.wake()

    def watch(self) -> None:
        """Start watching in a daemon thread."""
        threading.Thread(target=self._watch, name=f"clustrix-watch-{self.run}", daemon=True).start()

    def _watch(self) -> None:
        open_jobs = {job.element: job for job in self.jobs}
        failures = 0
        try:
            while open_jobs:
                try:
                    changed = self.poll(open_jobs)
                    failures = 0
                except ClusterError:
                    # A failed query means unknown, never absent.
                    failures += 1
                    if failures > 20:
                        raise
                    changed = False
                if open_jobs:
                    self._ticker.wait(changed=changed)
            record().update(self.run, state="done")
        except BaseException as error:
            for job in open_jobs.values():
                job.settle(None, error=error)

    def poll(self, open_jobs: dict[int, Job]) -> bool:
        """Ask once; settle and drop from ``open_jobs`` what has ended. Whether anything changed."""
        for element in [element for element, job in open_jobs.items() if job.done()]:
            del open_jobs[element]
        if not open_jobs:
            return True
        by_id = {self._ids[element]: element for element in open_jobs}
        changed = False
        for identity, status in self._cluster.states(list(by_id)).items():
            job = open_jobs[by_id[identity]]
            changed |= status.state is not job.status.state
            if status.state is not State.UNKNOWN:
                job.observe(status)
            if status.state.terminal:
                self._settle(job, status)
                del open_jobs[job.element]
        return changed

    def _settle(self, job: Job, status: Status) -> None:
        if status.state is State.CANCELLED:
            job.settle(None, cancelled=True)
            return
        try:
            outcome = self._collect(job, status)
            if outcome is None:
                job.settle(None, error=self._without_mark(job, status))
            elif outcome.mark.outcome == "ok":
                self._outcomes[job.element] = outcome
                job.settle(lambda: self.load(outcome))
            else:
                job.settle(None, error=self._exception(outcome, status))
        except Error as error:
            job.settle(None, error=error)

    def _collect(self, job: Job, status: Status) -> Outcome | None:
        """The element's outcome; a mark that a slow file system still hides is waited for."""
        from .results import directory

        end = time.monotonic() + (MARK_GRACE if status.state is State.SUCCEEDED else 0)
        while True:
            outcome = directory.collect(self._directory, job.element, 0, self._key(), run=self.run)
            if outcome is not None or time.monotonic() > end:
                return outcome
            time.sleep(0.1)

    def _key(self) -> bytes:
        try:
            return (self._directory / "key").read_bytes()
        except OSError as error:
            raise ResultLost(f"the key of run {self.run} is not there any more: {error}") from error

    def _exception(self, outcome: Outcome, status: Status) -> BaseException:
        try:
            self.load(outcome, status)
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError) and error.name:
                _advise(error, error.name)
            return error
        raise AssertionError("an outcome that is not ok raises")

    def load(self, outcome: Outcome, status: Status | None = None) -> Any:
        """The outcome's value, unpickled from the verified copy; or raise what it stands for."""
        from .capture import pickling
        from .results import outcome as outcomes

        if not self._trust and outcome.value is not None:
            raise UntrustedResultError(
                f"the result of {self.run}/{outcome.mark.element} comes from an image that you did"
                f" not build; it is kept as bytes in {outcome.value}",
                hint="Unpickling runs code of whoever made the image. --trust does it all the same.",
                path=str(outcome.value),
            )
        return outcomes.load(
            outcome,
            status=status,
            unpickle=lambda data, buffers: pickling.load(data, buffers, main=self._main),
        )

    def _without_mark(self, job: Job, status: Status) -> Error:
        from .results import outcome as outcomes

        error = outcomes.without_mark(status, run=self.run, element=job.element)
        if isinstance(error, ResultLost):
            error.hint = f"`cxc rerun {self.image}` runs the same image again."
            return error
        tail = b"".join(self.logs(job.element))[-2000:].decode("utf-8", "replace").strip()
        if tail:
            error.hint = f"{error.hint or ''}\n  The last of its output:\n{tail}".strip()
        return error


def _advise(error: ModuleNotFoundError, module: str) -> None:
    """Add what would bring the module into the image; a note where Python has notes."""
    from .capture.distributions import suggest

    advice = suggest(module)
    if advice and hasattr(error, "add_note"):
        error.add_note(advice)


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
    """Record, submit and watch a run of ``image``, which lies in the layout."""
    refuse_inside()
    target, cluster, resources = choose(options)
    run = Run(
        id=new_id(name),
        name=name,
        image=image.digest,
        count=count,
        target=target.name,
        type=target.type,
        details={
            "options": _plain(target.options),
            "resources": _plain(asdict(resources)),
            "main": str(main) if main else None,
            "max_parallel": options.max_parallel,
            "array": array,
            "client": os.getpid(),
            "argv": sys.argv[:1],
        },
    )
    book = record()
    directory = book.intend(run, built=built)
    ids = cluster.submit(_task(run, directory))
    book.update(run.id, state="submitted", ids=_pack(ids))
    session = Session(run, cluster, ids, directory, main_module, trust)
    session.watch()
    return session


def choose(options: Options) -> tuple[configuration.Target, Cluster, Resources]:
    """Where a run with these options goes, and what its elements get; errors before any work."""
    config = configuration.load()
    target = config.target(options.on)
    resources = options.resources(default_resources(config, target.options))
    return target, open_target(target), resources


def attach(run_id: str, *, watch: bool = True) -> Session:
    """The session of a run in this user's record, from any process."""
    refuse_inside()
    book = record()
    run = book.run(run_id)
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
    session = Session(
        run,
        cluster,
        ids,
        directory,
        lambda: load_main(run.image, run.details.get("main")),
        book.built(run.image),
    )
    if watch:
        session.watch()
    return session


def _task(run: Run, directory: Path) -> Task:
    return Task(
        run=run.id,
        name=run.name,
        image=f"oci:{prepare.layout().directory}@{run.image}",
        elements=range(run.count),
        resources=Resources(**run.details["resources"]),
        directory=directory,
        max_parallel=run.details.get("max_parallel"),
    )


def handle(session: Session) -> Job | JobArray:
    """What the user holds of a session: a JobArray where it came from ``map``, else a Job."""
    return JobArray(session, session.jobs) if session.is_array else session.jobs[0]


def load_main(digest: str, main: str | None) -> ModuleType:
    """The script that a run's types belong to: this process's own, or that of the image's code."""
    import json

    from .capture import pickling
    from .image import build as builder

    def source() -> bytes:
        files = builder.read_code(prepare.layout().image(digest))
        return files[json.loads(files[ENTRY])["script"]]

    return pickling.script_module(Path(main) if main else None, source)


def rerun(digest: str, options: Options, *, trust: bool) -> Session:
    """Run the image ``digest`` again: the same bytes, so the same call.

    ``digest`` is that of an image in the layout (a prefix will do), or a registry reference with
    a digest. Results of an image that this record did not build stay bytes unless ``trust``.
    """
    layout = prepare.layout()
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
    from .oci import Reference
    from .registry import Remote, fetch_layers

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
    own = {key: value for key, value in target.options.items() if key not in RESOURCES}
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
