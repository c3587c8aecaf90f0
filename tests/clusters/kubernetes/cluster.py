"""Starts a Kubernetes of three machines, with a registry that its nodes pull from."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.kubernetes import parts
from tests.clusters.kubernetes.configuration import INSIDE, NODES, Configuration
from tests.clusters.kubernetes.programs import programs
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network
from tests.clusters.machines.roots import root
from tests.clusters.machines.service import Service
from tests.clusters.registry.cluster import Registries
from tests.clusters.registry.cluster import Service as Registry

GIVEN = "CLUSTRIX_TEST_KUBECONFIG"
"""Names the kubeconfig of a cluster to use instead of starting one (never plain KUBECONFIG)."""

SECRET = "registry"
"""The pull secret in each namespace that :meth:`Kubernetes.make_namespace` makes."""


@dataclass(frozen=True)
class Kubernetes:
    """An API server and two nodes, with all they have in ``directory``.

    ``with_parent`` ends them when the thread that started them ends.
    """

    directory: Path
    with_parent: bool = False

    # -- the four verbs

    def up(self) -> None:
        """Start what does not run, and wait until both nodes are ready (10 s)."""
        if os.geteuid() != 0:
            raise StartError(
                f"only root can start a Kubernetes: name a running one in {GIVEN},"
                " or leave it out by name (--exclude kubernetes)"
            )
        fresh = not self.network.directory.exists()
        self.network.up()
        self.registries.up()
        if fresh or not self.configuration.kubeconfig("admin").exists():
            self._configure()
        for machine in (self.control, *map(self.node, NODES)):
            machine.up()
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(self.start_node, name) for name in NODES]
            self._start_control()
            for future in started:
                future.result()
        self.wait_for_nodes()

    def env(self) -> Mapping[str, str]:
        registry = self.registry
        return {
            GIVEN: str(self.configuration.kubeconfig("admin")),
            "CLUSTRIX_TEST_REGISTRY_USER": registry.username,
            "CLUSTRIX_TEST_REGISTRY_PASSWORD": registry.password,
            "SSL_CERT_FILE": str(registry.ca_file),
        }

    def target(self) -> str:
        config = self.configuration.kubeconfig("admin")
        return (
            "targets:\n  k8s:\n    type: kubernetes\n"
            f"    kubeconfig: {config}\n    namespace: default\n"
            f"    registry: {self.registry.address}/me\n    pull_secret: {SECRET}"
        )

    def logs(self) -> str:
        shown = []
        for service in self._services():
            with contextlib.suppress(StartError):
                shown.append(f"== {service.machine.name}: {service.name}\n{service.logs()}")
        return "\n".join(shown)

    def down(self) -> None:
        """End everything, and remove all it had."""
        with contextlib.suppress(StartError):
            for machine in (self.control, *map(self.node, NODES)):
                machine.down()
        self.registries.down()
        self.network.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- what it is made of

    @property
    def network(self) -> Network:
        return Network(self.directory / "network", self.with_parent)

    @property
    def registries(self) -> Registries:
        return Registries(self.directory / "registries", self.with_parent, self.network.host)

    @property
    def registry(self) -> Registry:
        """The registry that the nodes trust: TLS, and a password to pull as well."""
        return self.registries.tls

    @property
    def configuration(self) -> Configuration:
        return Configuration(self.directory / "configuration", self.network.address(2))

    @property
    def control(self) -> Machine:
        """The machine of the API server, the controller manager and the scheduler."""
        return self._machine("control", 2)

    def node(self, name: str) -> Machine:
        """The machine of a kubelet: ``node1`` or ``node2``."""
        return self._machine(name, 3 + NODES.index(name))

    @property
    def api_server(self) -> Service:
        return parts.api_server(self.control, self.configuration)

    @property
    def controller_manager(self) -> Service:
        return parts.controller_manager(self.control, self.configuration)

    @property
    def scheduler(self) -> Service:
        return parts.scheduler(self.control, self.configuration)

    # -- for tests

    def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> str:
        """What ``kubectl`` prints, as the administrator; :class:`StartError` if it fails."""
        done = subprocess.run(
            [
                programs() / "kubectl",
                f"--kubeconfig={self.configuration.kubeconfig('admin')}",
                f"--cache-dir={self.directory / 'kubectl'}",
                *arguments,
            ],
            input=text,
            check=False,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        if check and done.returncode != 0:
            raise StartError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def make_namespace(self, name: str) -> None:
        """A namespace with the pull secret for the registry in it."""
        objects: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET, "namespace": name},
                "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": self.pull_secret()},
            },
        ]
        for item in objects:
            self.kubectl("apply", "-f", "-", text=json.dumps(item))

    def pull_secret(self) -> str:
        """``.dockerconfigjson`` of a pull secret, in base64."""
        registry = self.registry
        pair = f"{registry.username}:{registry.password}".encode()
        auths = {registry.address: {"auth": base64.b64encode(pair).decode()}}
        return base64.b64encode(json.dumps({"auths": auths}).encode()).decode()

    def ready_nodes(self) -> list[str]:
        """The nodes that are Ready, as the API server sees it; none while it does not answer."""
        path = (
            '{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}'
            '{"\\n"}{end}'
        )
        lines = self.kubectl("get", "nodes", "-o", f"jsonpath={path}", check=False).split()
        return [line.partition("=")[0] for line in lines if line.endswith("=True")]

    def wait_for_nodes(self, *names: str, seconds: float = 120) -> None:
        """Wait until these nodes (both, if none is named) are ready, and no other is."""
        wanted = sorted(names or NODES)
        if not wait_until(lambda: sorted(self.ready_nodes()) == wanted, seconds):
            raise StartError(f"ready: {self.ready_nodes()}, not {wanted}\n{self.logs()}")

    def start_node(self, name: str) -> None:
        """Switch a node on, or on again after :meth:`Machine.kill`; fine if it runs."""
        machine = self.node(name)
        machine.up()
        if machine.run("test", "-e", "/opt/sysctl/done", check=False).returncode != 0 or (
            machine.run("cat", "/proc/sys/net/ipv4/conf/eth0/proxy_arp").stdout.strip() != "1"
        ):
            machine.run("sh", "-c", parts.PREPARE, "sh", f"{INSIDE}/{name}.cni.json")
            machine.run("touch", "/opt/sysctl/done")
        containerd = parts.containerd(machine)
        containerd.start()
        containerd.wait()
        images = machine.run("ctr", "--namespace=k8s.io", "images", "list", "--quiet").stdout
        if "localhost/pause:1" not in images:
            machine.run("ctr", "--namespace=k8s.io", "images", "import", f"{INSIDE}/pause.tar")
        parts.kubelet(machine, self.configuration).start()

    def requests(self, user: str) -> list[str]:
        """``verb resource status`` of each request of ``user`` that the API server has answered."""
        found = []
        for line in self.control.run("cat", "/var/log/audit.log").stdout.splitlines():
            event = json.loads(line)
            if event["user"]["username"] == user:
                what = event.get("objectRef", {})
                name = what.get("resource", event["requestURI"])
                if what.get("subresource"):
                    name += f"/{what['subresource']}"
                found.append(f"{event['verb']} {name} {event['responseStatus']['code']}")
        return found

    # -- how

    def _configure(self) -> None:
        self.configuration.make()
        first, *rest = self.network.host.rpartition(".")[0], 64, 128
        for name, start in zip(NODES, rest, strict=True):
            self.configuration.write_kubelet(name, f"{first}.{start}/26")
        ca_file = self.registry.ca_file
        assert ca_file is not None
        self.configuration.write_containerd(self.registry.address, ca_file)
        busybox = shutil.which("busybox")
        if busybox is None:
            raise StartError("busybox is not installed: run 'make setup-system' as root")
        archive = parts.pause_image(Path(busybox))
        (self.configuration.directory / "pause.tar").write_bytes(archive)

    def _start_control(self) -> None:
        etcd = parts.etcd(self.control)
        etcd.start()
        etcd.wait()
        self.api_server.start()
        self.api_server.wait()
        self.controller_manager.start()
        self.scheduler.start()

    def _services(self) -> list[Service]:
        found = [parts.etcd(self.control), self.api_server]
        found += [self.controller_manager, self.scheduler]
        for name in NODES:
            node = self.node(name)
            found += [parts.containerd(node), parts.kubelet(node, self.configuration)]
        return found

    def _machine(self, name: str, number: int) -> Machine:
        own = self.directory / name
        binds = {self.configuration.directory: INSIDE, programs(): parts.PROGRAMS}
        if name in NODES:
            # Neither can lie on an overlay.
            for place in ("containerd", "kubelet"):
                (self.directory / f"{name}-{place}").mkdir(parents=True, exist_ok=True)
                binds[self.directory / f"{name}-{place}"] = f"/var/lib/{place}"
        return Machine(name, own, root(parts.RECIPE), self.network, number, binds, self.with_parent)
