"""The programs that run on the machines of a SLURM cluster, as services."""

from __future__ import annotations

from tests.clusters.machines.machine import Machine
from tests.clusters.machines.service import Service
from tests.clusters.slurm.configuration import INSIDE
from tests.clusters.slurm.variants import USER, Variant

# What a killed machine has written is safe in this machine's memory; waiting for its disk too
# would make tests slow, and all at once.
_NO_SYNC = {"LD_PRELOAD": "libeatmydata.so"}

_PREPARE = """
set -eu
install -d -o munge -g munge -m 755 /run/munge
install -d -o munge -g munge -m 700 /var/lib/munge /var/log/munge
install -d -o slurm -g slurm -m 755 /run/slurm
install -d -o slurm -g slurm -m 700 /var/spool/slurmctld
install -d -o mysql -g mysql -m 755 /run/mysqld
# Debian's clients look in one of two places.
ln -sfn mysqld /run/mariadbd
install -d -m 755 /var/spool/slurmd /run/sshd
for number in 0 1; do
    [ -e "/dev/nvidia$number" ] || mknod -m 666 "/dev/nvidia$number" c 1 3
done
"""

_DATABASE = """
create database if not exists slurm_acct_db;
create user if not exists slurm@localhost identified via unix_socket;
grant all on slurm_acct_db.* to slurm@localhost;
"""

# Adding what is there is an error.
_ACCOUNTS = f"""
set -eu
add() {{
    kind=$1 name=$2
    shift 2
    [ -n "$(sacctmgr -nP show "$kind" "$name")" ] || sacctmgr -iQ add "$kind" "$name" "$@"
}}
add cluster testcluster
add account research Cluster=testcluster
add user root Account=research
add user {USER} Account=research
"""


def prepare(machine: Machine, variant: Variant) -> None:
    """Make what its services expect; what is in memory is gone with every boot."""
    machine.run("sh", "-c", _PREPARE)
    variant.site.restrict(machine)


def munged(machine: Machine) -> Service:
    command = (
        *("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"),
        *("munged", "--foreground", f"--key-file={INSIDE}/munge.key"),
    )
    return Service(
        "munged", machine, command, lambda: _succeeds(machine, "munge --no-input > /dev/null")
    )


def mariadbd(machine: Machine) -> Service:
    command = (
        *("mariadbd", "--no-defaults", "--user=mysql", "--datadir=/var/lib/mysql"),
        *("--socket=/run/mysqld/mysqld.sock", "--skip-networking"),
        *("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"),
        *("--innodb-undo-tablespaces=0", "--innodb-lock-wait-timeout=900"),
    )
    return Service(
        "mariadbd",
        machine,
        command,
        lambda: _succeeds(machine, "mariadb-admin --no-defaults --silent ping"),
        _NO_SYNC,
    )


def make_database(machine: Machine) -> None:
    machine.run("mariadb", "--no-defaults", text=_DATABASE)


def make_accounts(machine: Machine) -> None:
    machine.run("sh", "-c", _ACCOUNTS)


def slurmdbd(machine: Machine) -> Service:
    return Service(
        "slurmdbd",
        machine,
        ("slurmdbd", "-D"),
        lambda: _succeeds(machine, "sacctmgr -n show cluster"),
    )


def slurmctld(machine: Machine) -> Service:
    # It writes one of its files only after a while, and without -i does not start again before.
    return Service(
        "slurmctld",
        machine,
        ("slurmctld", "-D", "-i"),
        lambda: "is UP" in machine.run("scontrol", "ping", check=False).stdout,
        _NO_SYNC,
    )


def slurmd(machine: Machine) -> Service:
    """It is ready when the controller reports the node."""
    return Service("slurmd", machine, ("slurmd", "-D"), lambda: True)


def _succeeds(machine: Machine, script: str) -> bool:
    return machine.run("sh", "-c", script, check=False).returncode == 0
