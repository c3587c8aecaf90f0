"""What SLURM clusters differ in, and the root file systems that their machines have."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from tests.clusters.machines import apptainer
from tests.clusters.machines.apptainer import NO_FUSE, NO_OVERLAY, NO_SQUASHFUSE, OPEN, Site
from tests.clusters.machines.roots import Recipe, place
from tests.clusters.machines.sshd import FIRST_UID

_PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "mount"),
    *("slurmdbd", "slurm-wlm-mysql-plugin", "mariadb-server", "libeatmydata1"),
)

USER = "alice"
"""The ordinary user, with the same number on every machine."""

_SCRIPT = f"""
chroot . groupadd --gid {FIRST_UID} {USER}
chroot . useradd --uid={FIRST_UID} --gid={FIRST_UID} --no-create-home --shell=/bin/bash {USER}
rm -f etc/munge/munge.key
rm -rf var/lib/mysql
chroot . install -d -o mysql -g mysql -m 700 /var/lib/mysql
chroot . mariadb-install-db --no-defaults --user=mysql --datadir=/var/lib/mysql --skip-test-db --force \\
    --innodb-log-file-size=8M --innodb-undo-tablespaces=0
"""


@dataclass(frozen=True)
class Variant:
    """One kind of SLURM cluster; ``recipe`` is the root file system of all its machines.

    ``accounting`` adds slurmdbd and MariaDB; ``site`` is what Apptainer finds on the nodes.
    ``needs`` is a root file system that must be made before. ``disk`` is the size of the shared volume in MiB; 0 is as much as this machine has.
    """

    name: str
    recipe: Recipe
    accounting: bool = True
    site: Site = OPEN
    needs: Recipe | None = None
    disk: int = 0


_SID = Recipe("slurm", "sid", apptainer.PACKAGES + _PACKAGES, apptainer.SCRIPT + _SCRIPT)

# Only sid has Apptainer, which wants a newer libc than bookworm's. What was built for an older
# libc runs with a newer one, so the whole system gets it, as an upgrade would do it.
_FROM_SID = """
for package in libc6 apptainer; do
    dpkg --root={sid} -L "$package"
done | sed 's|^/||; /^\\.\\{{0,1\\}}$/d; /^usr\\/share/d' |
    tar -C {sid} -c --no-recursion --verbatim-files-from -T - | tar -x --keep-directory-symlink
chroot . ldconfig
"""


def _bookworm() -> Recipe:
    packages = (*(it for it in apptainer.PACKAGES if it != "apptainer"), *_PACKAGES)
    libraries = ("libseccomp2", "libsqlite3-0", "uidmap")
    script = _FROM_SID.format(sid=shlex.quote(str(place(_SID))))
    return Recipe(
        *("slurm-bookworm", "bookworm"), packages + libraries, script + apptainer.SCRIPT + _SCRIPT
    )


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("current", _SID),
        Variant("no-accounting", _SID, accounting=False),
        Variant("22.05", _bookworm(), needs=_SID),
        Variant("no-overlay", _SID, site=NO_OVERLAY),
        Variant("no-squashfuse", _SID, site=NO_SQUASHFUSE),
        Variant("no-fuse", _SID, site=NO_FUSE),
        Variant("small-disk", _SID, accounting=False, disk=64),
    )
}
"""The kinds by name; the first is the one that ``make test`` uses."""
