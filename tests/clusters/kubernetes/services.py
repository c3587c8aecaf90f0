"""The programs that run on the machines of a Kubernetes, as services."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tarfile
from pathlib import Path

from tests.clusters.kubernetes.audit import LOG
from tests.clusters.kubernetes.configuration import INSIDE, Configuration
from tests.clusters.kubernetes.health import ready
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.roots import Recipe
from tests.clusters.machines.service import Service

RECIPE = Recipe(
    "kubernetes",
    "bookworm",
    (
        *("ca-certificates", "containerd", "containernetworking-plugins", "etcd-server"),
        *("iproute2", "iptables", "mount", "passwd", "procps", "runc"),
    ),
)
PAUSE = "localhost/pause:1"
"""The image of the process that holds a pod's namespaces."""

PROGRAMS = "/opt/kubernetes"
"""Where the built programs are seen in the machines."""


def etcd(machine: Machine) -> Service:
    """It does not wait for the disk: what it knows survives its machine's end, not this one's."""
    command = ("etcd", "--data-dir=/var/lib/etcd/data", "--unsafe-no-fsync", "--log-level=warn")
    health = ("sh", "-c", "exec 3<>/dev/tcp/127.0.0.1/2379")
    return Service(
        "etcd",
        machine,
        command,
        lambda: machine.run("bash", *health[1:], check=False).returncode == 0,
    )


def api_server(machine: Machine, configuration: Configuration) -> Service:
    pki = f"{INSIDE}/certificates"
    command = (
        f"{PROGRAMS}/kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--bind-address={machine.address}",
        f"--advertise-address={machine.address}",
        f"--client-ca-file={pki}/ca.pem",
        f"--tls-cert-file={pki}/server.pem",
        f"--tls-private-key-file={pki}/server.key",
        f"--kubelet-client-certificate={pki}/admin.pem",
        f"--kubelet-client-key={pki}/admin.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={INSIDE}/accounts.pub",
        f"--service-account-signing-key-file={INSIDE}/accounts.key",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--feature-gates=TTLAfterFinished=true",
        "--kubelet-preferred-address-types=InternalIP",
        # Five minutes is more than a test's patience with the pods of a node that is lost.
        "--default-not-ready-toleration-seconds=4",
        "--default-unreachable-toleration-seconds=4",
        f"--audit-policy-file={INSIDE}/audit.yaml",
        f"--audit-log-path={LOG}",
        "--profiling=false",
    )
    return Service("kube-apiserver", machine, command, lambda: ready(configuration))


def controller_manager(machine: Machine, configuration: Configuration) -> Service:
    command = (
        f"{PROGRAMS}/kube-controller-manager",
        _kubeconfig(configuration, "system:kube-controller-manager"),
        f"--service-account-private-key-file={INSIDE}/accounts.key",
        f"--root-ca-file={INSIDE}/certificates/ca.pem",
        "--leader-elect=false",
        "--port=0",
        # How soon a volume claim is bound.
        "--pvclaimbinder-sync-period=2s",
        "--use-service-account-credentials=true",
        "--feature-gates=TTLAfterFinished=true",
        # A node that is lost is noticed within a test's patience: the kubelet gives a sign of
        # life every 2.5 s, and a busy machine may delay a few of them.
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=16s",
        # What a cluster for batch jobs does not need costs time on two cores.
        "--controllers=*,-attachdetach,-cronjob,-csrapproving,-csrcleaner,-csrsigning,-daemonset,"
        "-deployment,-disruption,-endpoint,-endpointslice,-endpointslicemirroring,"
        "-horizontalpodautoscaling,-persistentvolume-expander,-replicaset,"
        "-replicationcontroller,-route,-service,-statefulset",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--profiling=false",
    )
    return Service("kube-controller-manager", machine, command, lambda: _listens(machine, 10257))


def scheduler(machine: Machine, configuration: Configuration) -> Service:
    command = (
        f"{PROGRAMS}/kube-scheduler",
        _kubeconfig(configuration, "system:kube-scheduler"),
        "--leader-elect=false",
        "--port=0",
        "--profiling=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    )
    return Service("kube-scheduler", machine, command, lambda: _listens(machine, 10259))


def containerd(machine: Machine) -> Service:
    return Service(
        "containerd",
        machine,
        ("containerd", f"--config={INSIDE}/containerd.toml"),
        lambda: machine.run("ctr", "version", check=False).returncode == 0,
    )


def kubelet(machine: Machine, configuration: Configuration) -> Service:
    command = (
        f"{PROGRAMS}/kubelet",
        f"--config={INSIDE}/{machine.name}.kubelet.json",
        _kubeconfig(configuration, f"system:node:{machine.name}"),
        f"--hostname-override={machine.name}",
        f"--node-ip={machine.address}",
        "--container-runtime=remote",
        "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
        "--network-plugin=cni",
        "--cni-bin-dir=/usr/lib/cni",
        "--oom-score-adj=0",
        # Never removed to make room.
        f"--pod-infra-container-image={PAUSE}",
        # How often it looks what each container uses.
        "--housekeeping-interval=30s",
    )
    return Service("kubelet", machine, command, lambda: _listens(machine, 10250))


OWN_DISK = ("containerd", "kubelet")
"""What of a node's ``/var/lib`` cannot lie on an overlay."""
PREPARE = """
set -e
done=/run/prepared
[ ! -e $done ] || exit 0
mkdir -p /etc/cni/net.d /run/sysctl
cp "$1" /etc/cni/net.d/pods.conflist
[ -e /dev/kmsg ] || mknod -m 600 /dev/kmsg c 1 11
[ -s /etc/machine-id ] || tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
# Pods have addresses of the machines' own network: this machine answers ARP for them.
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv4/conf/eth0/proxy_arp
# Where clouds answer: the kubelet would wait for it, and nobody here may ask a real one.
ip route add unreachable 169.254.0.0/16
# The kubelet sets what belongs to the whole kernel: it finds it set, and changes nothing.
while read -r name value; do
    file=/run/sysctl/$(echo "$name" | tr / _)
    echo "$value" > "$file"
    mount --bind "$file" "/proc/sys/$name"
done << SYSCTL
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTL
: > $done
"""
"""Makes a machine a node, once after each start of it: ``sh -c PREPARE sh CNI-CONFIGURATION``."""


def pause_image(busybox: Path) -> bytes:
    """The image of the process that holds a pod's namespaces, as ``docker save`` writes one."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(busybox, "busybox", filter=_plain)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/busybox", "sleep", "2147483647"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer.getvalue())]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _kubeconfig(configuration: Configuration, user: str) -> str:
    return f"--kubeconfig={INSIDE}/{configuration.kubeconfig(user).name}"


def _listens(machine: Machine, port: int) -> bool:
    try:
        socket.create_connection((machine.address, port), timeout=5).close()
    except OSError:
        return False
    return True
