"""What is known of pods: listings of one run and of all, and events, in any order."""

from __future__ import annotations

from collections.abc import Iterator

from clustrix_containers.clusters.kubernetes.pods.views import PodView, Views

POD = PodView("r", 0, 0, "p1", "r-0-x", "node1", "Running", 1.0)


def test_an_older_listing_brings_nothing_back_that_a_newer_one_does_not_have() -> None:
    views: Views[PodView] = Views()
    views.fill([POD])

    def listing() -> Iterator[PodView]:
        yield POD
        # The watch has expired, and lists all.
        views.fill([])

    views.add(listing)
    assert views.of("r") == []
    views.add(lambda: [POD])
    assert views.of("r") == [POD]
