"""A command in a pod behind an API server that accepts connections, and is silent."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from clustrix_containers.clusters.kubernetes.api import connect
from clustrix_containers.clusters.kubernetes.results import stream
from clustrix_containers.errors import ClusterError
from tests.unit.clusters.kubernetes.scripted import kubeconfig


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_server_is_not_waited_for(tmp_path: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        api = connect(kubeconfig(tmp_path / "kubeconfig", url), None, None)
        begun = time.monotonic()
        with (
            pytest.raises(ClusterError, match="no response") as caught,
            stream.deliver(api, "pod", ["wait"], patience=0.5),
        ):
            pass
        assert caught.value.fields["temporary"]
        assert time.monotonic() - begun < 20
