"""An image of ours, unpacked by our own code, whose worker runs in the played cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clustrix_containers.clusters.local.staging import read_layout
from clustrix_containers.worker import contract
from tests.kubernetes_server import Server, Settings, Unpacked, unpacked
from tests.kubernetes_server.conftest import connected
from tests.local.images import Layout

CODE = "def f(x):\n    print('in', x)\n    return x * 2\n"


def test_the_worker_runs_each_element(tmp_path: Path) -> None:
    reference = Layout(tmp_path / "layout").image(CODE, [(10,), (11,), (12,)])
    results = tmp_path / "results"
    results.mkdir(mode=0o777)
    results.chmod(0o777)

    def pull(image: str) -> Unpacked:
        assert image == "registry.example.com/me/f@" + reference.partition("@")[2]
        return unpacked(read_layout(reference), tmp_path / "cache")

    settings = Settings(claims={"results": results})
    with Server(tmp_path / "server", pull, settings) as server:
        for peer in connected(server, "default"):
            key = {"metadata": {"name": "key"}, "stringData": {"key": "0" * 64}}
            peer.core.create_namespaced_secret("default", key)
            main = {
                "image": "registry.example.com/me/f@" + reference.partition("@")[2],
                "command": None,
                "env": [{"name": contract.ENV_RUN, "value": "run-1"}],
                "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 1234},
                "volumeMounts": [
                    {"name": "run", "mountPath": contract.RUN, "readOnly": True},
                    {"name": "results", "mountPath": contract.RESULTS},
                ],
            }
            pod = {
                "volumes": [
                    {"name": "run", "secret": {"secretName": "key", "defaultMode": 0o440}},
                    {"name": "results", "persistentVolumeClaim": {"claimName": "results"}},
                ],
                "securityContext": {"fsGroup": 77, "runAsGroup": 77},
            }
            spec: dict[str, Any] = {"completionMode": "Indexed", "completions": 3, "parallelism": 2}
            job = peer.start("", pod=pod, main=main, **spec)
            status = peer.finished(job)
            logs = sorted(peer.log(it["metadata"]["name"]) for it in peer.pods(job))
            assert status.get("succeeded") == 3, logs
            assert logs == ["in 10\n", "in 11\n", "in 12\n"]
    marks = [json.loads((results / f"{element}.0.mark").read_text()) for element in range(3)]
    assert [it["outcome"] for it in marks] == ["ok"] * 3
