"""The files that configure a SLURM cluster, as every machine sees them in /etc/slurm."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.slurm.variants import Variant

INSIDE = "/etc/slurm"
NODES = ("node1", "node2")

_SLURM = """\
ClusterName=testcluster
SlurmctldHost=control({control})
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
MailProg=/bin/true
MpiDefault=none
PropagateResourceLimits=NONE

ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=2
CompleteWait=0
KillWait=2
MinJobAge=300
SlurmdTimeout=10
ReturnToService=2

GresTypes=gpu
# The cluster has the same size on every machine that it is tried on.
SlurmdParameters=config_overrides
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=short Nodes=node1 MaxTime=1 DefaultTime=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
"""

_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=control
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu
"""

_SLURMDBD = """\
AuthType=auth/munge
DbdHost=control
DbdAddr={control}
SlurmUser=slurm
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
PidFile=/run/slurm/slurmdbd.pid
CommitDelay=0
"""

_GRES = "Name=gpu File=/dev/nvidia[0-1]\n"
"""The devices are fakes: jobs get them in their environment, and can do nothing with them."""


@dataclass(frozen=True)
class Configuration:
    """The files in ``directory``; ``addresses`` are the machines' by name."""

    directory: Path
    variant: Variant
    root: Path
    addresses: Mapping[str, str]

    def make(self) -> None:
        """Write all of them, with a new key for munge."""
        self.directory.mkdir(parents=True, exist_ok=True)
        control = self.addresses["control"]
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={self.addresses[name]} CPUs=4 RealMemory=3000 Gres=gpu:2"
            for name in NODES
        )
        slurm = _SLURM.format(control=control, nodes=nodes)
        if self.variant.accounting:
            slurm += _ACCOUNTING
            self._write("slurmdbd.conf", _SLURMDBD.format(control=control), "slurm")
        self._write("munge.key", secrets.token_hex(64), "munge")
        self._write("gres.conf", _GRES)
        self._write("cgroup.conf", _cgroups())
        self._write("slurm.conf", slurm)

    def _write(self, name: str, text: str, owner: str = "") -> None:
        """``owner`` is an account inside, who alone may read it."""
        file = self.directory / name
        partial = file.with_name(f".{name}.new")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(text)
            if owner:
                os.fchown(descriptor, *account(self.root, owner))
            else:
                os.fchmod(descriptor, 0o644)
        partial.replace(file)


def account(root: Path, name: str) -> tuple[int, int]:
    """The user and group number of an account in a root file system."""
    for line in (root / "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2]), int(fields[3])
    raise LookupError(f"{root} has no account {name}")


def _cgroups() -> str:
    lines = ["ConstrainRAMSpace=yes"]
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "\n".join([*lines, "CgroupPlugin=cgroup/v2", "IgnoreSystemd=yes", ""])
    # Without the kernel's accounting of swap, SLURM refuses to limit it.
    if Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists():
        lines.append("ConstrainSwapSpace=yes")
    return "\n".join([*lines, "CgroupPlugin=cgroup/v1", ""])
