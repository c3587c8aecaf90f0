"""What is retried, how often, and after how long."""

from __future__ import annotations

import time

import pytest

from clustrix_containers.errors import ClusterError, ConfigError, RegistryError
from clustrix_containers.remote.retry import Retry

FAST = Retry(attempts=4, first=0.001, longest=0.002, patience=0.5)


class Failing:
    """Fails with these errors in turn, then gives 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_a_temporary_error_is_retried() -> None:
    once = Failing(
        RegistryError("busy", temporary=True),
        ClusterError("lost", temporary=True),
        ConfigError("odd", temporary=True),
    )
    assert FAST.run(once) == 7
    assert once.calls == 4


@pytest.mark.parametrize(
    "error", [RegistryError("denied"), ClusterError("gone"), ValueError("a bug")]
)
def test_any_other_error_is_not(error: Exception) -> None:
    once = Failing(error)
    with pytest.raises(type(error), match=str(error)):
        FAST.run(once)
    assert once.calls == 1


def test_the_attempts_are_bounded() -> None:
    once = Failing(*[RegistryError(f"number {n}", temporary=True) for n in range(1, 9)])
    with pytest.raises(RegistryError, match="number 4"):
        FAST.run(once)
    assert once.calls == 4


def test_retry_after_is_obeyed_up_to_patience() -> None:
    begun = time.monotonic()
    assert FAST.run(Failing(RegistryError("busy", temporary=True, retry_after=0.2))) == 7
    assert time.monotonic() - begun >= 0.2
    once = Failing(RegistryError("busy", temporary=True, retry_after=0.6))
    with pytest.raises(RegistryError):
        FAST.run(once)
    assert once.calls == 1


def test_delays_double_up_to_the_longest() -> None:
    retry = Retry(attempts=9, first=1, longest=5)
    error = RegistryError("busy", temporary=True)
    for failures, longest in [(1, 1), (2, 2), (3, 4), (4, 5), (8, 5)]:
        for _ in range(20):
            delay = retry.delay(failures, error)
            assert delay is not None
            assert longest / 2 <= delay <= longest
    assert retry.delay(9, error) is None
