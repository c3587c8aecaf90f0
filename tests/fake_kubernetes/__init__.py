"""A fake Kubernetes 1.36: an API server, the Job controller, and two nodes that run containers.

The tests' real cluster is Kubernetes 1.20. The fake is for what that does not have (Indexed Jobs,
suspended Jobs, ``backoffLimitPerIndex``, ``podFailurePolicy``, current schemas), for failures of
the API that a real server does not produce on demand, and for thousands of pods. HTTP, TLS and
containers are real. ``test_against_real.py`` compares it with the real cluster.

It implements what our client uses: Jobs with one completion or Indexed ones, and pods of one
container that never restarts. What it does not implement it refuses.
"""

from tests.fake_kubernetes.cluster import FakeCluster, Settings
from tests.fake_kubernetes.faults import Request
from tests.fake_kubernetes.images import Pull, PullError, Unpacked, unpacked

__all__ = ["FakeCluster", "Pull", "PullError", "Request", "Settings", "Unpacked", "unpacked"]
