"""Ports that stay free while the service that had one is down for a moment."""

from __future__ import annotations

import errno
import random
import socket

RANGE = range(20_000, 30_000)
"""Below what the kernel gives to outgoing connections: nothing takes one of these by chance."""


def bind(host: str, port: int = 0) -> socket.socket:
    """A socket that listens at ``port`` of ``host``; with 0 at a free one of :data:`RANGE`."""
    while True:
        number = port or random.choice(RANGE)
        try:
            return socket.create_server((host, number), backlog=128)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
