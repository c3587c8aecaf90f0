"""A small stateful Kubernetes for tests of what no real cluster here is new enough for.

Real HTTP and TLS on 127.0.0.1, objects checked against a current OpenAPI schema, a Job
controller with Indexed Jobs, and pods whose containers really run, as processes. What it claims
of a real cluster is compared with one in ``test_compared.py``.
"""

from tests.kubernetes_server.disturbances import Request
from tests.kubernetes_server.images import Pull, PullError, Unpacked, unpacked
from tests.kubernetes_server.server import Server, Settings

__all__ = ["Pull", "PullError", "Request", "Server", "Settings", "Unpacked", "unpacked"]
