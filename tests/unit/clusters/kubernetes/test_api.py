"""Requests: what is retried, what is an error, and lists in pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustrix_containers.errors import ClusterError
from tests.unit.clusters.kubernetes.scripted import Response, api_server

DENIED = 'pods is forbidden: User "me" cannot list resource "pods" in API group ""'


def script(*responses: tuple[int, dict[str, object]]) -> list[Response]:
    return [(status, dict(value), {}) for status, value in responses]


def refusal(status: int, message: str = "no") -> tuple[int, dict[str, object]]:
    return status, {"kind": "Status", "message": message}


def test_what_may_pass_is_retried(tmp_path: Path) -> None:
    responses = script(refusal(503), refusal(429), (200, {"items": []}))
    responses[1] = (429, {}, {"Retry-After": "0"})
    with api_server(tmp_path, lambda *_: responses.pop(0)) as (api, paths):
        assert api.call("list pods", api.core.list_namespaced_pod, "team") == {"items": []}
    assert paths == ["/api/v1/namespaces/team/pods"] * 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_what_is_final_is_an_error_with_its_status(tmp_path: Path, status: int) -> None:
    response = script(refusal(status, "because"))[0]
    with api_server(tmp_path, lambda *_: response) as (api, paths):
        with pytest.raises(ClusterError, match=f"cannot list pods at c .*: {status} because") as e:
            api.call("list pods", api.core.list_namespaced_pod, "team")
        assert (e.value.status, e.value.temporary) == (status, False)
        list_pods = api.core.list_namespaced_pod
        assert api.call("list pods", list_pods, "team", none=(status,)) is None
    assert len(paths) == 2


def test_a_server_that_asks_for_more_patience_than_there_is(tmp_path: Path) -> None:
    response: Response = (429, {"message": "busy"}, {"Retry-After": "3600"})
    with (
        api_server(tmp_path, lambda *_: response) as (api, paths),
        pytest.raises(ClusterError, match="429 busy") as caught,
    ):
        api.call("list pods", api.core.list_namespaced_pod, "team")
    assert caught.value.temporary
    assert len(paths) == 1


def test_what_was_allowed_before_and_is_denied_now_is_retried(tmp_path: Path) -> None:
    responses = script((200, {}), refusal(403, DENIED), refusal(401), (200, {"items": [1]}))
    with api_server(tmp_path, lambda *_: responses.pop(0)) as (api, paths):
        for expected in ({}, {"items": [1]}):
            assert api.call("list pods", api.core.list_namespaced_pod, "team") == expected
    assert len(paths) == 4


def test_a_list_comes_in_pages(tmp_path: Path) -> None:
    queries = []

    def respond(_path: str, query: dict[str, str]) -> Response:
        queries.append(query)
        last = "continue" in query
        metadata = {"resourceVersion": "7", **({} if last else {"continue": "more"})}
        return 200, {"items": [len(queries)], "metadata": metadata}, {}

    with api_server(tmp_path, respond) as (api, _):
        pages = list(api.pages("pod", "a=b"))
    assert [page["items"] for page in pages] == [[1], [2]]
    assert [query["labelSelector"] for query in queries] == ["a=b", "a=b"]
    assert queries[1]["continue"] == "more"


def test_a_server_that_is_too_old_is_refused_each_time(tmp_path: Path) -> None:
    version: Response = (200, {"major": "1", "minor": "18"}, {})
    with api_server(tmp_path, lambda *_: version) as (api, _):
        for _ in range(2):
            with pytest.raises(
                ClusterError, match=r"is Kubernetes 1\.18; at least 1\.19 is needed"
            ):
                api.server  # noqa: B018
