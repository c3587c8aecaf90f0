"""A host with sshd and Apptainer, no scheduler and no Python; and how it can be reached."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import StartError
from tests.clusters.machines.apptainer import (
    NO_FUSE,
    NO_OVERLAY,
    NO_SQUASHFUSE,
    OPEN,
    PLAIN_HOST,
    Site,
)
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network
from tests.clusters.machines.roots import place, root
from tests.clusters.machines.sshd import BOTH, INTERACTIVE, PUBLICKEY, Entry, Sshd, write_config

# What bash reads for a command over SSH, too. Every line of it is found on real sites.
_NOISY = """
echo 'Welcome to the clüster!  * maintenance on Monday *'
echo 'Your quota is 93 % used.' >&2
shopt -s expand_aliases
alias ls='ls --color=always -la' rm='rm -i' cp='cp -i'
export PYTHONPATH=/opt/site/python APPTAINER_BINDPATH=/opt/site
cd /opt/site
"""
# A stranger sees that there is something; only the way in is open.
_FIREWALL = """
table inet firewall
delete table inet firewall
table inet firewall {{
    chain input {{
        type filter hook input priority 0
        iifname "eth0" ip saddr != {allowed} ct state new reject
    }}
}}
"""


@dataclass(frozen=True)
class Variant:
    """One kind of host: how one logs in, what is in the way, what the site's people changed."""

    name: str
    methods: tuple[str, ...] = (PUBLICKEY,)
    jump: bool = False
    noisy: bool = False
    site: Site = OPEN


VARIANTS = {
    it.name: it
    for it in (
        Variant("plain"),
        Variant("jump", jump=True),
        Variant("interactive", methods=(INTERACTIVE,)),
        Variant("two-factor", methods=(BOTH,)),
        Variant("noisy", noisy=True),
        Variant("no-overlay", site=NO_OVERLAY),
        Variant("no-squashfuse", site=NO_SQUASHFUSE),
        Variant("no-fuse", site=NO_FUSE),
    )
}
"""All variants by name."""


@dataclass(frozen=True)
class Host:
    """A host and, where it is behind one, its jump host; all they have is in ``directory``.

    The path of ``directory`` has no spaces: OpenSSH's ProxyJump cannot quote its configuration.
    ``with_parent`` ends it when the thread that started it ends.
    """

    directory: Path
    variant: Variant = VARIANTS["plain"]
    with_parent: bool = False
    user: str = "alice"

    @property
    def name(self) -> str:
        """What ``ssh -F`` :attr:`config` calls the host."""
        return "host"

    @property
    def config(self) -> Path:
        """A configuration for OpenSSH that names the host, and the jump host if there is one."""
        return self.directory / "config"

    @property
    def network(self) -> Network:
        return Network(self.directory / "network", with_parent=self.with_parent)

    @property
    def machine(self) -> Machine:
        return self._machine("host", 3)

    @property
    def jump(self) -> Machine:
        """The machine that one has to go through; it exists only in such a variant."""
        return self._machine("jump", 2)

    @property
    def sshd(self) -> Sshd:
        return Sshd(self.machine, self.directory / "keys", methods=self.variant.methods)

    @property
    def jump_sshd(self) -> Sshd:
        return Sshd(self.jump, self.directory / "jump-keys", forwarding=True)

    def ssh(self, *command: str) -> tuple[str, ...]:
        """What runs a shell command on the host with this machine's own ``ssh``.

        With :meth:`environment` it needs nobody to type, whatever the host asks.
        """
        return ("ssh", "-F", str(self.config), self.name, *command)

    def environment(self) -> dict[str, str]:
        """This process's environment, in which ``ssh`` has the password where one is asked for."""
        return {**os.environ, "SSH_ASKPASS": str(self._askpass), "SSH_ASKPASS_REQUIRE": "force"}

    def up(self) -> None:
        """Start what is not running, and wait until it answers."""
        if shutil.which("ssh") is None:
            raise StartError("ssh is not installed: run 'make setup-system' as root")
        root(PLAIN_HOST)
        if not self.network.running():
            for machine in (self.machine, self.jump):  # what a run that was killed has left
                machine.down()
        self.network.up()
        entries = []
        if self.variant.jump:
            self.jump.up()
            self.jump_sshd.up()
            entries.append(Entry("jump", self.jump_sshd, self.user))
        self.machine.up()
        self.sshd.up()
        self._prepare()
        entries.append(Entry(self.name, self.sshd, self.user, "jump" if self.variant.jump else ""))
        write_config(self.config, entries)
        self._askpass.write_text(f"#!/bin/sh\ncat {shlex.quote(str(self.sshd.password_file))}\n")
        self._askpass.chmod(0o700)

    def env(self) -> Mapping[str, str]:
        given = {
            "CLUSTRIX_TEST_SSH_HOST": self.name,
            "CLUSTRIX_TEST_SSH_CONFIG": str(self.config),
        }
        if self.variant.methods != (PUBLICKEY,):
            given["SSH_ASKPASS"] = str(self._askpass)
            given["SSH_ASKPASS_REQUIRE"] = "force"
        return given

    def target(self) -> str:
        return (
            "targets:\n"
            f"  {self.variant.name}: {{type: ssh, host: {self.name}, config: {self.config}}}\n"
            f"by hand: ssh -F {self.config} {self.name}"
        )

    def logs(self) -> str:
        daemons = {"host": self.sshd} | ({"jump": self.jump_sshd} if self.variant.jump else {})
        return "\n".join(
            f"== {name}\n{it.logs() if it.machine.running() else 'is off'}"
            for name, it in daemons.items()
        )

    def down(self) -> None:
        """End it, and remove all that it had."""
        for machine in (self.machine, self.jump):
            machine.down()
        self.network.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _askpass(self) -> Path:
        return self.directory / "askpass"

    def _machine(self, name: str, number: int) -> Machine:
        return Machine(
            name=name,
            directory=self.directory / name,
            root=place(PLAIN_HOST),
            network=self.network,
            number=number,
            with_parent=self.with_parent,
        )

    def _prepare(self) -> None:
        self.variant.site.restrict(self.machine)
        if self.variant.jump:
            _filter(self.machine, _FIREWALL.format(allowed=self.jump.address))
        if self.variant.noisy:
            script = (
                'mkdir -p /opt/site/python && cat > "$1/.bashrc" && cp "$1/.bashrc" "$1/.profile"'
            )
            self.machine.run("sh", "-c", script, "sh", f"/home/{self.user}", text=_NOISY)


def _filter(machine: Machine, rules: str) -> None:
    """Load nftables ``rules`` in a machine, which itself has no program for that."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{machine.pid}/ns/net", "--", "nft", "-f", "-"],
        check=False,
        capture_output=True,
        text=True,
        input=rules,
    )
    if done.returncode != 0:
        raise StartError(f"{machine.name}: nft: {done.stderr}")
