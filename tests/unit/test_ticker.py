"""When a run's elements are asked about, and which of them."""

from __future__ import annotations

import threading
import time

from clustrix_containers.runs.ticker import Ticker

LONG = 1000.0


def test_without_news_all_are_asked_about() -> None:
    ticker = Ticker(0.001, 0.002)
    assert ticker.wait(10_000, changed=True) is None
    assert ticker.wait(10_000, changed=False) is None


def test_news_ends_the_wait_and_is_told_once() -> None:
    ticker = Ticker(LONG, LONG)
    ticker.tell([3, 4])
    ticker.tell([4, 5])
    assert ticker.wait(10, changed=False) == {3, 4, 5}
    threading.Timer(0.05, ticker.wake, ([7],)).start()
    assert ticker.wait(10, changed=False) == {7}


def test_news_that_may_be_of_any_asks_about_all() -> None:
    ticker = Ticker(LONG, LONG)
    ticker.tell([3])
    ticker.tell(None)
    assert ticker.wait(10, changed=False) is None


def test_all_are_asked_about_in_spite_of_news() -> None:
    ticker = Ticker(0.01, 0.01)
    end = time.monotonic() + 60
    asked = None
    while time.monotonic() < end:
        ticker.tell([1])
        asked = ticker.wait(1, changed=False)
        if asked is None:
            break
    assert asked is None


def test_where_news_is_told_many_are_rarely_asked_about() -> None:
    ticker = Ticker(0.001, 0.001)
    count = 200
    ticker.tell([1])
    began = time.monotonic()
    while ticker.wait(count, changed=True) is not None:
        pass
    assert time.monotonic() - began >= count * Ticker.EACH * 0.99
