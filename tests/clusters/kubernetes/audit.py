"""Which requests the API server has answered: what tests count calls with."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass

LOG = "/var/log/audit.log"
"""Where the API server's machine has its audit log."""


@dataclass(frozen=True)
class Request:
    """One request: ``list pods 200``, ``create pods/exec 101``.

    A watch is here from its first answer on. ``resource`` is the path where there is none.
    """

    verb: str
    resource: str
    status: int
    user: str
    agent: str
    at: datetime.datetime

    def __str__(self) -> str:
        return f"{self.verb} {self.resource} {self.status}"


def requests(log: str) -> Iterator[Request]:
    """The requests of an audit log, in the order in which they were answered."""
    seen = set()
    for line in log.splitlines(keepends=True):
        # The last line may be in the making.
        if not line.endswith("\n"):
            return
        event = json.loads(line)
        # One that stays open is there when it is answered, and again when it ends.
        if event["auditID"] not in seen:
            seen.add(event["auditID"])
            what = event.get("objectRef", {})
            resource = what.get("resource", event["requestURI"])
            if what.get("subresource"):
                resource += f"/{what['subresource']}"
            yield Request(
                event["verb"],
                resource,
                event.get("responseStatus", {}).get("code", 0),
                event["user"].get("username", ""),
                event.get("userAgent", ""),
                datetime.datetime.fromisoformat(
                    event["requestReceivedTimestamp"].replace("Z", "+00:00")
                ),
            )
