"""How many requests a push needs: a part of what this package promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Remote, digest_tag
from tests.clusters.registry.cluster import Service
from tests.counting import CountingPool
from tests.samples import image, layer, noise

_FAR = 0.05
"""Seconds that the registry is away, so that what can go at once does."""

pytestmark = pytest.mark.registry


@pytest.fixture
def base(tmp_path: Path) -> Image:
    """A base and a wheel that are large enough to be asked for."""
    return image(
        layer({"usr/base": noise(200_000, 1)}, "base", tmp_path / "cache"),
        layer({"opt/venv/numpy": noise(100_000, 2)}, "wheel", tmp_path / "cache"),
    )


def code(number: int) -> Image:
    return image(layer({"opt/clustrix/code/f.py": b"def f(): return %d\n" % number}, "code"))


def test_one_changed_function_is_five_requests_in_three_trips(
    registry_open: Service, repository: str, remote: Callable[..., Remote], base: Image
) -> None:
    pool = CountingPool(_FAR)
    there = remote(registry_open, repository, pool=pool)
    there.push(base.append(*code(1).layers))
    pool.noted.clear()

    pushed = there.push(base.append(*code(2).layers))

    assert pool.methods == ["POST", "POST", "PUT", "PUT", "PUT"]
    assert pool.trips == 3
    assert sum(it.sent for it in pool.noted) < 16_000
    manifest = next(it for it in pool.noted if "/manifests/" in it.url)
    assert manifest.url.endswith(f"/manifests/{digest_tag(pushed.digest)}")


def test_another_process_knows_what_this_one_has_pushed(
    registry_open: Service, repository: str, remote: Callable[..., Remote], base: Image
) -> None:
    remote(registry_open, repository).push(base.append(*code(1).layers))
    pool = CountingPool(_FAR)

    remote(registry_open, repository, pool=pool).push(base.append(*code(2).layers))

    assert pool.methods == ["POST", "POST", "PUT", "PUT", "PUT"]


def test_new_arguments_too_are_seven_requests(
    registry_open: Service, repository: str, remote: Callable[..., Remote], base: Image
) -> None:
    pool = CountingPool(_FAR)
    there = remote(registry_open, repository, pool=pool)
    there.push(base)
    pool.noted.clear()
    call = layer({"opt/clustrix/call/data": noise(300_000, 3)}, "call")

    there.push(base.append(*code(2).layers, call))

    assert pool.methods == ["POST"] * 3 + ["PUT"] * 4
    assert pool.trips == 3


def test_the_same_image_again_is_one_request(
    registry_open: Service, repository: str, remote: Callable[..., Remote], base: Image
) -> None:
    pool = CountingPool(_FAR)
    there = remote(registry_open, repository, pool=pool)
    there.push(base)
    pool.noted.clear()

    there.push(base)

    assert pool.methods == ["PUT"]


def test_a_registry_that_lost_its_blobs_gets_them_again(
    registry_open: Service, repository: str, remote: Callable[..., Remote], base: Image
) -> None:
    pool = CountingPool(_FAR)
    remote(registry_open, f"{repository}/first", pool=pool).push(base)
    presence = next(iter(Path(base.layers[0].blob).parents[1].glob("presence/*/*first")))  # type: ignore[arg-type]
    # As if the repository had been pushed to and then deleted by its administrator.
    presence.with_name(repository.replace("/", "+")).write_bytes(presence.read_bytes())
    pool.noted.clear()

    pushed = remote(registry_open, repository, pool=pool).push(base)

    assert pool.methods.count("PUT") == 3
    assert remote(registry_open, repository).image(pushed.digest).digest == base.digest


def test_a_second_project_uploads_none_of_a_wheel_that_the_first_one_has(
    registry_open: Service, repository: str, remote: Callable[..., Remote], base: Image
) -> None:
    remote(registry_open, f"{repository}/one").push(base)
    pool = CountingPool(_FAR)

    remote(registry_open, f"{repository}/two", pool=pool).push(base.append(*code(1).layers))

    assert pool.methods == ["POST"] * 4 + ["PUT"] * 3
    assert sum(it.sent for it in pool.noted) < 16_000


def test_blobs_that_nothing_is_known_of_are_asked_for_at_once(
    registry_open: Service,
    repository: str,
    remote: Callable[..., Remote],
    base: Image,
    tmp_path: Path,
) -> None:
    remote(registry_open, repository).push(base)
    pool = CountingPool(_FAR)

    remote(registry_open, repository, pool=pool, cache=tmp_path / "nothing").push(base)

    assert pool.methods == ["HEAD", "HEAD", "POST", "PUT", "PUT"]
    assert pool.trips == 3
