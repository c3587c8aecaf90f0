"""Starts a SLURM cluster of four machines: login, control, node1 and node2."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network
from tests.clusters.machines.roots import place, root
from tests.clusters.machines.service import Service
from tests.clusters.machines.sshd import Entry, Sshd, write_config
from tests.clusters.slurm import services
from tests.clusters.slurm.configuration import INSIDE, NODES, Configuration
from tests.clusters.slurm.variants import USER, VARIANTS, Variant
from tests.clusters.slurm.volume import Volume

MACHINES = ("login", "control", *NODES)


@dataclass(frozen=True)
class Slurm:
    """A SLURM cluster with its state in ``directory``.

    The controller has a machine of its own: whatever happens to it, the login node answers.
    ``with_parent`` ends the cluster when the thread that started it ends.
    """

    directory: Path
    variant: Variant = VARIANTS["current"]
    with_parent: bool = False

    # -- the four verbs

    def up(self) -> None:
        """Start what does not run, undo pauses and cuts, and wait until both nodes take jobs (5 s)."""
        if os.geteuid() != 0:
            raise StartError(
                "only root can start a SLURM cluster: leave it out by name (--exclude slurm)"
            )
        if self.variant.needs is not None:
            root(self.variant.needs)
        root(self.variant.recipe)
        self.network.up()
        if not self._made():
            self.down()
            self.network.up()
            self.volume.make()
            self.configuration.make()
            self._mark.write_text(self._identity)
        # A machine ends with the thread that started it: all are started by this one.
        for name in MACHINES:
            machine = self.machine(name)
            if machine.running():
                machine.resume()
                machine.reconnect()
            machine.up()
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(self.start_node, name) for name in NODES]
            started += [pool.submit(self.start_login), pool.submit(self.start_control)]
            for future in started:
                future.result()
        self.wait_for_nodes()

    def env(self) -> Mapping[str, str]:
        return {
            "CLUSTRIX_TEST_SLURM_HOST": self.sshd.address,
            "CLUSTRIX_TEST_SLURM_PORT": str(self.sshd.port),
            "CLUSTRIX_TEST_SLURM_USER": USER,
            "CLUSTRIX_TEST_SLURM_KEY": str(self.sshd.key(USER)),
            "CLUSTRIX_TEST_SLURM_KNOWN_HOSTS": str(self.sshd.known_hosts),
            "CLUSTRIX_TEST_SLURM_SSH_CONFIG": str(self.ssh_config),
        }

    def target(self) -> str:
        return (
            "targets:\n  slurm:\n    type: slurm\n"
            f"    host: {self.sshd.address}\n    port: {self.sshd.port}\n    user: {USER}\n"
            f"    key: {self.sshd.key(USER)}\n    known_hosts: {self.sshd.known_hosts}"
        )

    def logs(self) -> str:
        machines = map(self.machine, MACHINES)
        shown = [f"== {machine.name}: first process\n{machine.logs()}" for machine in machines]
        for service in self._services():
            with contextlib.suppress(StartError):
                shown.append(f"== {service.machine.name}: {service.name}\n{service.logs()}")
        with contextlib.suppress(StartError):
            shown.append(f"== login: sshd\n{self.sshd.logs()}")
        return "\n".join(shown)

    def down(self) -> None:
        """End everything, and remove all it had."""
        if self.directory.exists():
            for name in MACHINES:
                self.machine(name).down()
            self.volume.down()
            self.network.down()
            shutil.rmtree(self.directory)

    # -- what it is made of

    @property
    def network(self) -> Network:
        return Network(self.directory / "network", self.with_parent)

    @property
    def volume(self) -> Volume:
        """/home and /scratch of the login node and the compute nodes."""
        return Volume(self.directory / "volume", self.variant.disk)

    @property
    def configuration(self) -> Configuration:
        addresses = {name: self.network.address(2 + MACHINES.index(name)) for name in MACHINES}
        return Configuration(
            self.directory / "configuration", self.variant, place(self.variant.recipe), addresses
        )

    @property
    def login(self) -> Machine:
        return self.machine("login")

    @property
    def control(self) -> Machine:
        """The machine of slurmctld, and of slurmdbd and MariaDB where there is accounting."""
        return self.machine("control")

    def machine(self, name: str) -> Machine:
        """One of :data:`MACHINES`."""
        binds = {self.directory / "configuration": INSIDE}
        if name != "control":
            binds.update(self.volume.binds)
        return Machine(
            name,
            self.directory / name,
            place(self.variant.recipe),
            self.network,
            2 + MACHINES.index(name),
            binds,
            self.with_parent,
        )

    @property
    def sshd(self) -> Sshd:
        return Sshd(self.login, self.directory / "ssh", (USER,))

    @property
    def ssh_config(self) -> Path:
        """``ssh -F FILE login`` logs the user in."""
        return self.directory / "ssh" / "config"

    # -- for tests

    def ssh(self, *arguments: str, text: str = "", timeout: float = 60) -> str:
        """What a shell command line of the user prints, over SSH; :class:`StartError` if it fails.

        As with any ssh, the arguments become one line for the shell there.
        """
        done = subprocess.run(
            ["ssh", "-F", self.ssh_config, "-o", "BatchMode=yes", "login", "--", *arguments],
            input=text,
            check=False,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
        )
        if done.returncode != 0:
            raise StartError(
                f"ssh: {' '.join(arguments)} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """Each node's state as sinfo tells it (``idle``, ``mixed``, ``down*``, …).

        Empty while the controller does not answer.
        """
        lines = self.control.run("sinfo", "-h", "-N", "-p", "debug", "-o", "%n %T", check=False)
        pairs = (line.split() for line in lines.stdout.splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def usable_nodes(self) -> list[str]:
        """The nodes that run jobs or could."""
        usable = {"idle", "mixed", "allocated", "completing"}
        return [name for name, state in self.node_states().items() if state in usable]

    def wait_for_nodes(self, *names: str, seconds: float = 120) -> None:
        """Wait until these nodes (both, if none is named) are usable, and no other is."""
        wanted = sorted(names or NODES)
        if not wait_until(lambda: sorted(self.usable_nodes()) == wanted, seconds):
            raise StartError(
                f"the nodes are {self.node_states()}, and {wanted} should be usable\n{self.logs()}"
            )

    # -- how

    def start_node(self, name: str) -> None:
        """Start what runs on a compute node, which is on; fine if it runs."""
        node = self.machine(name)
        self._prepare(node)
        services.slurmd(node).start()

    def start_login(self) -> None:
        """Start what runs on the login node, which is on; fine if it runs."""
        self._prepare(self.login)
        self.sshd.up()
        write_config(self.ssh_config, [Entry("login", self.sshd, USER)])

    def start_control(self) -> None:
        """Start what runs on the controller's machine, which is on; fine if it runs."""
        control = self.control
        database = services.mariadbd(control)
        services.prepare(control, self.variant)
        munged = services.munged(control)
        munged.start()
        if self.variant.accounting:
            database.start()
        munged.wait()
        if self.variant.accounting:
            database.wait()
            self.start_accounting()
        controller = services.slurmctld(control)
        controller.start()
        controller.wait()

    def start_accounting(self) -> None:
        """Start slurmdbd, with the database there; fine if it runs."""
        services.make_database(self.control)
        accounting = services.slurmdbd(self.control)
        accounting.start()
        accounting.wait()
        services.make_accounts(self.control)

    def _prepare(self, machine: Machine) -> None:
        services.prepare(machine, self.variant)
        self.volume.attach(machine)
        munged = services.munged(machine)
        munged.start()
        munged.wait()

    @property
    def _mark(self) -> Path:
        return self.directory / "made"

    @property
    def _identity(self) -> str:
        """Another one after a crash: then the network is new."""
        return f"{self.variant.name} {self.network.hub} {self.network.host}"

    def _made(self) -> bool:
        return self._mark.exists() and self._mark.read_text() == self._identity

    def _services(self) -> list[Service]:
        found = [services.munged(self.machine(name)) for name in MACHINES]
        found += [services.slurmctld(self.control)]
        if self.variant.accounting:
            found += [services.mariadbd(self.control), services.slurmdbd(self.control)]
        return found + [services.slurmd(self.machine(name)) for name in NODES]
