"""Root file systems with Apptainer for nodes, and the ways in which sites restrict it.

There is no setuid one: Debian builds Apptainer without its starter-suid.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.clusters.machines.machine import Machine
from tests.clusters.machines.roots import Recipe

PACKAGES = (
    *("apptainer", "squashfuse", "fuse-overlayfs", "squashfs-tools"),
    *("openssh-server", "passwd", "procps", "iproute2", "tzdata"),
)
"""Apptainer, what it runs with, and what :class:`~tests.clusters.machines.sshd.Sshd` needs."""

SCRIPT = """
# Machines for tests often keep root without CAP_SYS_RESOURCE, and have no systemd.
sed -i -e 's/^root default capabilities = .*/root default capabilities = file/' \\
    -e 's/^systemd cgroups = .*/systemd cgroups = no/' etc/apptainer/apptainer.conf
ln -sf /usr/share/zoneinfo/UTC etc/localtime
rm -f etc/ssh/ssh_host_*
! ls usr/bin/python* usr/local/bin/python* 2> /dev/null
"""
"""What a recipe with :data:`PACKAGES` does at its end; it fails where there is a Python."""

PLAIN_HOST = Recipe("host", "sid", PACKAGES, SCRIPT)
"""A host that has Apptainer and sshd, no scheduler, and no Python."""


@dataclass(frozen=True)
class Site:
    """What a site's administrators leave of Apptainer: all of it by default.

    ``overlay``: `enable overlay` of apptainer.conf, and with it fuse-overlayfs. ``squashfuse``:
    the program that mounts a SIF. ``fuse``: whether users may open /dev/fuse.
    """

    overlay: bool = True
    squashfuse: bool = True
    fuse: bool = True

    def restrict(self, machine: Machine) -> None:
        """Make a machine that is on such a one, until it is switched off at least."""
        script = ""
        if not self.overlay:
            script += "sed -i 's/^enable overlay = .*/enable overlay = no/'"
            script += " /etc/apptainer/apptainer.conf\nrm -f /usr/bin/fuse-overlayfs\n"
        if not self.squashfuse:
            script += "rm -f /usr/bin/squashfuse /usr/bin/squashfuse_ll\n"
        if not self.fuse:
            script += "chmod 600 /dev/fuse\n"
        machine.run("sh", "-euc", script)


OPEN = Site()
NO_OVERLAY = Site(overlay=False)
NO_SQUASHFUSE = Site(squashfuse=False)
NO_FUSE = Site(fuse=False)
