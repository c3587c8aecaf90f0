"""Options: what is refused, and how the defaults of a target and of the call combine."""

from __future__ import annotations

import pytest

from clustrix_containers.api.options import Options, Resources
from clustrix_containers.errors import ConfigError


def test_resources_are_parsed_and_the_others_are_the_defaults() -> None:
    default = Resources(cpus=3, timeout=60.0, gpus=1, env={"A": "1", "B": "1"})
    asked = Options(memory="2GiB", timeout="30m", shm="64M", env={"B": "2"})
    assert asked.resources(default) == Resources(
        3, 2 << 30, 1800.0, 1, 64_000_000, {"A": "1", "B": "2"}
    )
    assert Options(cpus=2, gpus=4).resources(default).gpus == 4
    assert Options().resources(default) == default


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cpus", 0, "cpus: expected a number of cores"),
        ("cpus", True, "cpus: expected a number of cores"),
        ("gpus", -1, "gpus: expected a number of GPUs"),
        ("gpus", 0.5, "gpus: expected a number of GPUs"),
        ("memory", "2 bananas", "memory: not a size"),
        ("shm", -1, "shm: not a size"),
        ("timeout", "soon", "timeout: not a time"),
        ("env", {"A": 1}, "env: expected a mapping of names to strings"),
        ("env", {1: "A"}, "env: expected a mapping of names to strings"),
        ("retries", -1, "retries must be 0 to 100"),
        ("max_parallel", 0, "max_parallel must be at least 1"),
    ],
)
def test_nonsense_is_refused_at_once(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Options().but(**{name: value})
    assert caught.value.key == name


def test_an_unknown_option_has_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'memory'"):
        Options().but(memroy="1GiB")
