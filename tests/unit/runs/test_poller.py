"""When a run's elements are asked about, and which of them."""

from __future__ import annotations

import threading
import time
from typing import Any

from clustrix_containers.runs.watching.poller import Ticker

LONG = 1000.0
RUN: Any = "a run"
OTHER: Any = "another"


def test_without_news_all_are_asked_about() -> None:
    ticker = Ticker(0.001, 0.002)
    assert ticker.wait(10_000, changed=True) is None
    assert ticker.wait(10_000, changed=False) is None


def test_news_ends_the_wait_and_is_told_once() -> None:
    ticker = Ticker(LONG, LONG)
    ticker.notify(RUN, [3, 4])
    ticker.notify(RUN, [4, 5])
    assert ticker.wait(10, changed=False) == {RUN: {3, 4, 5}}
    threading.Timer(0.05, ticker.wake, (RUN, [7])).start()
    assert ticker.wait(10, changed=False) == {RUN: {7}}


def test_news_of_several_runs_and_of_all_of_a_run() -> None:
    ticker = Ticker(LONG, LONG)
    ticker.notify(RUN, [3])
    ticker.notify(OTHER, [4])
    ticker.notify(RUN, None)
    assert ticker.wait(10, changed=False) == {RUN: None, OTHER: {4}}


def test_a_slow_query_is_followed_by_a_pause() -> None:
    ticker = Ticker(0.001, 0.001)
    began = time.monotonic()
    assert ticker.wait(1, changed=True, took=0.05) is None
    assert time.monotonic() - began >= 0.05 * Ticker.DUTY * 0.99


def test_all_are_asked_about_in_spite_of_news() -> None:
    ticker = Ticker(0.01, 0.01)
    end = time.monotonic() + 60
    asked = None
    while time.monotonic() < end:
        ticker.notify(RUN, [1])
        asked = ticker.wait(1, changed=False)
        if asked is None:
            break
    assert asked is None


def test_where_news_is_told_many_are_rarely_asked_about() -> None:
    ticker = Ticker(0.001, 0.001)
    count = 200
    ticker.notify(RUN, [1])
    began = time.monotonic()
    while ticker.wait(count, changed=True) is not None:
        pass
    assert time.monotonic() - began >= count * Ticker.EACH * 0.99
