"""Ending elements: all of a run's at once, or some of an array's for good."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from . import manifest
from .api import Api, body
from .status import PodView, view_job, view_pod
from .submit import each

PAGE = 500
BY_LABEL = 50
"""Elements up to which their pods are asked for by name, and not all of the run's."""


def cancel(api: Api, namespace: str, run: str, wanted: Mapping[int, Collection[int]]) -> None:
    """End elements, by attempt: delete their Jobs; where an Indexed Job has others too, their pods.

    A run that is ended as a whole takes one deletion, whatever its size.
    """
    chosen = f"{manifest.selector(run)},{manifest.LABEL_ATTEMPT}=0"
    # Any of the first attempt's Jobs says how many elements the run has.
    listed = _list(api, "list Jobs", api.batch.list_namespaced_job, namespace, chosen, limit=1)
    first = view_job(listed["items"][0]) if listed["items"] else None
    if first is not None and first.count <= len(set().union(*wanted.values())):
        api.call(
            "delete the run's Jobs",
            api.batch.delete_collection_namespaced_job,
            namespace,
            label_selector=manifest.selector(run),
            propagation_policy="Background",
        )
        return
    for attempt, elements in wanted.items():
        if attempt == 0 and first is None:
            continue  # they are gone
        if attempt == 0 and first is not None and first.indexed:
            _give_up(api, namespace, run, chosen, elements)
        else:
            names = {name for it in elements for name in manifest.job_names(run, attempt, it)}
            each(lambda name: _delete_job(api, namespace, name), sorted(names))


def _give_up(api: Api, namespace: str, run: str, chosen: str, elements: Collection[int]) -> None:
    """End some elements of an Indexed Job, which itself has no way to be told of it.

    Its controller may start the index of a deleted pod again, or one that has had no pod so far:
    so the run's Secret says which are cancelled, and their workers end before they begin.
    """
    cancelled = {f"cancelled-{element}": "" for element in elements}
    _unless_gone(
        api,
        "note in the run's Secret what is cancelled",
        api.core.patch_namespaced_secret,
        run,
        namespace,
        {"data": cancelled},
    )
    if api.server.labels_indexes and len(elements) <= BY_LABEL:
        chosen += f",{manifest.INDEX} in ({','.join(map(str, sorted(elements)))})"
    live = [
        pod.name
        for pod in _pods(api, namespace, chosen)
        if pod.element in elements and not pod.final
    ]
    if live:
        each(lambda name: _delete_pod(api, namespace, name), live)


def _pods(api: Api, namespace: str, chosen: str) -> Iterator[PodView]:
    options: dict[str, Any] = {}
    while True:
        found = _list(
            api,
            "list pods",
            api.core.list_namespaced_pod,
            namespace,
            chosen,
            limit=PAGE,
            **options,
        )
        yield from map(view_pod, found["items"])
        token = found["metadata"].get("continue")
        if not token:
            return
        options = {"_continue": token}


def _list(
    api: Api, action: str, listing: Any, namespace: str, chosen: str, **options: Any
) -> dict[str, Any]:
    answer = api.call(
        action, listing, namespace, label_selector=chosen, _preload_content=False, **options
    )
    found: dict[str, Any] = body(answer)
    return found


def _delete_job(api: Api, namespace: str, name: str) -> None:
    delete = api.batch.delete_namespaced_job
    _unless_gone(api, "delete a Job", delete, name, namespace, propagation_policy="Background")


def _delete_pod(api: Api, namespace: str, name: str) -> None:
    _unless_gone(api, "delete a pod", api.core.delete_namespaced_pod, name, namespace)


def _unless_gone(api: Api, action: str, function: Any, *arguments: Any, **options: Any) -> None:
    from kubernetes.client import ApiException

    try:
        api.call(action, function, *arguments, final=(404,), **options)
    except ApiException:
        return
