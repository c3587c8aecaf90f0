"""Answers that go wrong on demand: which requests, how often, and how."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.kubernetes_server.refusals import Refused


class Request(NamedTuple):
    verb: str
    resource: str
    """With its subresource: ``pods/log``; ``version`` for that."""
    agent: str


@dataclass
class Disturbance:
    """``left``: how many of the matching requests it still meets. ``*`` matches any."""

    verb: str
    resource: str
    left: int
    refusal: Refused | None = None
    hang: asyncio.Event | None = None
    """The request waits until this is set."""
    lose_reply: bool = False
    """The request is carried out, and the connection then cut."""
    cut: bool = False
    """The connection is cut, and nothing done."""


@dataclass
class Disturbances:
    requests: Counter[Request] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of answers' bodies, by verb."""

    waiting: list[Disturbance] = field(default_factory=list)

    def meet(self, request: Request) -> Disturbance | None:
        """Count a request; what is to happen to it."""
        self.requests[request] += 1
        for it in self.waiting:
            if it.verb in ("*", request.verb) and it.resource in ("*", request.resource):
                it.left -= 1
                if not it.left:
                    self.waiting.remove(it)
                return it
        return None
