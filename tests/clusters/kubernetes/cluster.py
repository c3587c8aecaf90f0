"""Starts a Kubernetes of three machines, with a registry that its nodes pull from."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.kubernetes import audit, faults, health, services, volumes
from tests.clusters.kubernetes import programs as built
from tests.clusters.kubernetes.access import GIVEN, SECRET, Access
from tests.clusters.kubernetes.configuration import INSIDE, NODES, Configuration
from tests.clusters.kubernetes.lock import locked
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network
from tests.clusters.machines.roots import place, root
from tests.clusters.machines.service import Service
from tests.clusters.registry.cluster import Registries
from tests.clusters.registry.cluster import Service as Registry

_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Kubernetes:
    """An API server and two nodes, with all they have in ``directory``.

    ``with_parent`` ends them when the thread that started them ends. There is no service
    network and no name service: a pod reaches this machine and other pods by address.
    """

    directory: Path
    with_parent: bool = False

    # -- the four verbs

    def up(self) -> None:
        """Start what does not run, put right what a fault has damaged, wait for both nodes (10 s).

        The first time it builds Kubernetes, with a message (six minutes on 2 cores).
        """
        prepare()
        with locked(self.directory):
            self.network.up()
            if not self._mark.exists():
                # Nothing of a network that has ended can be used in this one.
                self._remove_machines()
                self._configure()
                self._mark.touch()
            # A machine ends with the thread that started it: all are started by this one.
            for machine in self.machines:
                if machine.running():
                    machine.resume()
                    machine.reconnect()
                machine.up()
            self._start()
            self._connect_anew()
        self.wait_for_nodes()

    def env(self) -> Mapping[str, str]:
        return {
            **self.access.env(),
            "CLUSTRIX_TEST_KUBECTL": str(built.place() / "kubectl"),
            **self.access.variables(),
            # A person's shell asks others, too.
            "SSL_CERT_FILE": str(self.directory / "authorities.pem"),
        }

    def target(self) -> str:
        access = self.access
        return (
            "targets:\n  k8s:\n    type: kubernetes\n"
            f"    kubeconfig: {json.dumps(str(access.kubeconfig), ensure_ascii=False)}\n"
            "    context: test\n    namespace: default\n"
            f"    registry: {access.registry}/me\n    pull_secret: {SECRET}"
        )

    def logs(self) -> str:
        shown = [f"== {it.name}: first process\n{it.logs()}" for it in self.machines]
        # A network that did not come up has no addresses, a paused machine does not answer.
        with contextlib.suppress(StartError):
            for service in self._services():
                with contextlib.suppress(StartError, subprocess.TimeoutExpired):
                    shown.append(f"== {service.machine.name}: {service.name}\n{service.logs()}")
        return "\n".join([*shown, Registries(self._registries).logs()])

    def down(self) -> None:
        """End everything, and remove all it had."""
        with locked(self.directory):
            self._remove_machines()
            self.network.down()
            shutil.rmtree(self.directory)

    # -- what it is made of

    @property
    def access(self) -> Access:
        """What the tests of something else need of it."""
        it = self.registry
        return Access(
            self.configuration.kubeconfig("admin"),
            *(it.address, it.username, it.password, it.ca_file),
            self.directory / "auth.json",
        )

    @property
    def network(self) -> Network:
        return Network(self.directory / "network", self.with_parent)

    @property
    def registries(self) -> Registries:
        return Registries(self._registries, self.with_parent, self.network.host)

    @property
    def registry(self) -> Registry:
        """The registry that the nodes trust: TLS, and a password to pull as well."""
        return self.registries.tls

    @property
    def configuration(self) -> Configuration:
        return Configuration(self._configuration, self.network.address(2))

    @property
    def machines(self) -> tuple[Machine, ...]:
        return (self.control, *map(self.node, NODES))

    @property
    def control(self) -> Machine:
        """The machine of the API server, the controller manager and the scheduler."""
        return self._machine("control", 2)

    def node(self, name: str) -> Machine:
        """The machine of a kubelet, ``node1`` or ``node2``: to kill, pause, cut off."""
        return self._machine(name, 3 + NODES.index(name))

    @property
    def api_server(self) -> Service:
        return services.api_server(self.control, self.configuration)

    @property
    def controller_manager(self) -> Service:
        return services.controller_manager(self.control, self.configuration)

    @property
    def scheduler(self) -> Service:
        return services.scheduler(self.control, self.configuration)

    def kubelet(self, name: str) -> Service:
        """A node's kubelet, to stop and start: its containers go on without it."""
        return services.kubelet(self.node(name), self.configuration)

    # -- for tests

    def kubectl(
        self, *arguments: str, text: str = "", check: bool = True, timeout: float = 120
    ) -> str:
        """What ``kubectl`` prints, as the administrator; :class:`StartError` if it fails."""
        done = subprocess.run(
            [
                built.place() / "kubectl",
                f"--kubeconfig={self.configuration.kubeconfig('admin')}",
                f"--cache-dir={self.directory / 'kubectl'}",
                *arguments,
            ],
            input=text,
            check=False,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise StartError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def requests(
        self, *, user: str = "", agent: str = "", since: datetime.datetime | None = None
    ) -> list[audit.Request]:
        """The requests of ``user`` and of clients with ``agent``, received from ``since`` on.

        ``user`` is a name, ``agent`` a part of the User-Agent; ``since`` has a time zone. What
        the cluster asks of itself is not among them.
        """
        found = audit.requests(self.control.run("cat", audit.LOG).stdout)
        return [
            it
            for it in found
            if user in ("", it.user) and agent in it.agent and (since is None or it.at >= since)
        ]

    def ready_nodes(self) -> list[str]:
        """The nodes that are Ready, as the API server sees it; none while it does not answer."""
        return health.ready_nodes(self.configuration)

    def wait_for_nodes(self, *names: str, seconds: float = 120) -> None:
        """Wait until these nodes (both, if none is named) are ready, and no other is."""
        wanted = sorted(names or NODES)
        if not wait_until(lambda: self.ready_nodes() == wanted, seconds):
            raise StartError(f"ready: {self.ready_nodes()}, not {wanted}\n{self.logs()}")

    def make_claim(self, namespace: str, name: str) -> None:
        """A volume claim that pods on both nodes may mount at once, and any user may write to."""
        directory = f"{namespace}-{name}"
        (self._shared / directory).mkdir()
        (self._shared / directory).chmod(0o777)
        objects = volumes.claim(namespace, name, directory)
        self.kubectl("create", "-f", "-", text=json.dumps(objects))
        phase = ("get", "pvc", "-n", namespace, name, "-o", "jsonpath={.status.phase}")
        # A pod that comes before would be tried again after a while only.
        if not wait_until(lambda: self.kubectl(*phase) == "Bound", 60):
            raise StartError(f"the volume claim {name} is {self.kubectl(*phase)} after 60 s")

    # -- faults, beside those of machines and services; `up` ends all of them

    def start_node(self, name: str) -> None:
        """Switch a node on, or on again after :meth:`Machine.kill`; fine if it runs.

        With ``with_parent`` it ends with the thread that calls this.
        """
        self.node(name).up()
        self._start_node(name)

    def refuse_pulls(self) -> None:
        """The registry refuses connections from the nodes. Whoever else asks it is answered."""
        for name in NODES:
            faults.refuse(self.node(name), self.registry.address)

    def allow_pulls(self) -> None:
        """The nodes can pull again."""
        for name in NODES:
            faults.accept(self.node(name))

    def fill_disk(self, name: str) -> None:
        """A node's kubelet finds too little room on its disk: it evicts pods, and takes no more.

        Nothing is written: what the kubelet wants to be free is more than any disk has.
        """
        self._restart_kubelet(name, "1Pi")

    def free_disk(self, name: str) -> None:
        """Free the disk; the node reports it in about 10 s."""
        self._restart_kubelet(name)

    # -- how

    @property
    def _configuration(self) -> Path:
        return self.directory / "configuration"

    @property
    def _shared(self) -> Path:
        return self.directory / "shared"

    @property
    def _registries(self) -> Path:
        return self.directory / "registries"

    @property
    def _mark(self) -> Path:
        """Is there once all is configured, for the network that it lies with."""
        return self.network.directory / "configured"

    def _remove_machines(self) -> None:
        for machine in self.machines:
            machine.down()
        # Of the network nothing may be left, and it is not needed for this.
        Registries(self._registries).down()
        for left in self.directory.iterdir():
            if left != self.network.directory:
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _configure(self) -> None:
        busybox = shutil.which("busybox")
        if busybox is None:
            raise StartError("busybox is not installed: run 'make setup-system' as root")
        self.configuration.make()
        self._shared.mkdir()
        for name in NODES:
            self.configuration.write_kubelet(name, self._pods(name))
            for part in services.OWN_DISK:
                (self.directory / f"{name}-{part}").mkdir()
        (self._configuration / "pause.tar").write_bytes(services.pause_image(Path(busybox)))

    def _start(self) -> None:
        """Start what runs in the machines, and the registry, all at once."""
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(self._start_control)]
            started += [pool.submit(self._heal_node, name) for name in NODES]
            self._start_registry()
            importlib.import_module("kubernetes.config")  # takes as long as this thread must wait
            for future in started:
                future.result()
        self.access.make_pull_secret("default")

    def _start_registry(self) -> None:
        self.registries.up()
        registry = self.registry
        assert registry.ca_file is not None
        self.configuration.trust(registry.address, registry.ca_file)
        _write(self.directory / "auth.json", self.access.auths())
        own = registry.ca_file.read_text()
        known = _AUTHORITIES.read_text() if _AUTHORITIES.exists() else ""
        _write(self.directory / "authorities.pem", f"{known}\n{own}")

    def _start_control(self) -> None:
        etcd = services.etcd(self.control)
        etcd.start()
        etcd.wait()
        self.api_server.start()
        self.api_server.wait()
        for service in (self.controller_manager, self.scheduler):
            service.start()
        for service in (self.controller_manager, self.scheduler):
            service.wait()

    def _connect_anew(self) -> None:
        """Restart those whose API server was restarted: else they retry it in up to a minute.

        https://github.com/kubernetes/kubernetes/blob/v1.20.2/staging/src/k8s.io/client-go/tools/cache/reflector.go
        """
        if not self.api_server.started_again():
            return
        since = self.api_server.started()
        watching = [self.controller_manager, self.scheduler, *map(self.kubelet, NODES)]

        def renew(service: Service) -> None:
            if service.started() < since:
                service.stop()
                service.start()
                service.wait()

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(renew, watching):
                pass

    def _heal_node(self, name: str) -> None:
        self._start_node(name)
        faults.accept(self.node(name))
        if not self.configuration.has_room(name):
            self.free_disk(name)

    def _start_node(self, name: str) -> None:
        machine = self.node(name)
        machine.run("sh", "-c", services.PREPARE, "sh", f"{INSIDE}/{name}.cni.json")
        containerd = services.containerd(machine)
        containerd.start()
        containerd.wait()
        images = machine.run("ctr", "--namespace=k8s.io", "images", "list", "--quiet").stdout
        if services.PAUSE not in images:
            machine.run("ctr", "--namespace=k8s.io", "images", "import", f"{INSIDE}/pause.tar")
        kubelet = self.kubelet(name)
        kubelet.start()
        kubelet.wait()

    def _restart_kubelet(self, name: str, room: str = "") -> None:
        self.configuration.write_kubelet(name, self._pods(name), room)
        kubelet = self.kubelet(name)
        kubelet.stop()
        kubelet.start()
        kubelet.wait()

    def _pods(self, name: str) -> str:
        """The part of the network's addresses that the pods of a node get."""
        prefix = self.network.host.rpartition(".")[0]
        return f"{prefix}.{64 * (1 + NODES.index(name))}/26"

    def _services(self) -> list[Service]:
        found = [services.etcd(self.control), self.api_server]
        found += [self.controller_manager, self.scheduler]
        for name in NODES:
            found += [services.containerd(self.node(name)), self.kubelet(name)]
        return found

    def _machine(self, name: str, number: int) -> Machine:
        own = self.directory / name
        binds = {self._configuration: INSIDE, built.place(): services.PROGRAMS}
        if name in NODES:
            binds[self._shared] = volumes.SHARED
            for part in services.OWN_DISK:
                binds[self.directory / f"{name}-{part}"] = f"/var/lib/{part}"
        return Machine(
            name, own, place(services.RECIPE), self.network, number, binds, self.with_parent
        )


def prepare() -> None:
    """Make what is expensive and kept: Kubernetes' programs, and the machines' root file system."""
    if os.geteuid() != 0:
        raise StartError(
            f"only root can start a Kubernetes: name a running one in {GIVEN},"
            " or leave it out by name (--exclude kubernetes)"
        )
    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(root, services.RECIPE), pool.submit(built.programs)]:
            future.result()


def _write(path: Path, text: str) -> None:
    """A file that only its owner reads, at once or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.touch(0o600)
    part.write_text(text)
    part.replace(path)
