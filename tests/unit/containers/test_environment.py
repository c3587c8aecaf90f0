from __future__ import annotations

from clustrix_containers.containers.environment import outer_limit, worker_environment
from clustrix_containers.worker import worker


def test_the_worker_reads_the_same_values_back() -> None:
    values = worker_environment(
        run="r-1", attempt=2, element=3, cpus=0.5, timeout=1234567.5, grace=7.0
    )
    call = worker.Call(values)
    assert (call.run, call.element, call.attempt) == ("r-1", 3, 2)
    assert (call.timeout, call.grace) == (1234567.5, 7.0)


def test_without_an_element_the_job_index_of_the_pod_counts() -> None:
    values = worker_environment(run="r-1", attempt=0, cpus=1, timeout=None, grace=5.0)
    assert worker.Call({**values, "JOB_COMPLETION_INDEX": "4"}).element == 4
    assert worker.Call(values).timeout is None


def test_the_outer_limit_leaves_the_worker_its_grace() -> None:
    assert outer_limit(None, 5.0) is None
    limit = outer_limit(10.0, 5.0)
    assert limit is not None and limit > 15.0
