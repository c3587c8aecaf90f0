"""Root file systems with Apptainer for nodes, and the ways in which sites restrict it."""

from __future__ import annotations

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
