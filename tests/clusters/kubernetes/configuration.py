"""The configuration of a Kubernetes: certificates, kubeconfigs, configuration files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.clusters.certificates import Authority

INSIDE = "/etc/kubernetes"
"""Where the directory with all of this is seen in the machines."""

NODES = ("node1", "node2")
_USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    **{f"system:node:{name}": "system:nodes" for name in NODES},
}


@dataclass(frozen=True)
class Configuration:
    """The files in ``directory`` for an API server at ``server`` (an IP address)."""

    directory: Path
    server: str

    @property
    def url(self) -> str:
        return f"https://{self.server}:6443"

    @property
    def authority(self) -> Authority:
        return Authority(self.directory / "certificates")

    def kubeconfig(self, user: str) -> Path:
        return self.directory / f"{user.replace(':', '-')}.kubeconfig"

    def make(self) -> None:
        """Write them all. Nobody but the owner can read a key."""
        self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.authority.make()
        self.authority.sign("server", user="kube-apiserver", addresses=[self.server, "10.96.0.1"])
        for user, group in _USERS.items():
            self.write_kubeconfig(user, group)
        self._make_account_key()
        self._write("audit.yaml", _AUDIT)
        (self.directory / "containerd.toml").write_text(_CONTAINERD)

    def write_kubeconfig(
        self, user: str, group: str = "", *, namespace: str = "default", days: float = 30
    ) -> Path:
        """A kubeconfig with everything in it, for a user with a certificate of so many days."""
        name = user.replace(":", "-")
        pair = self.authority.sign(name, user=user, group=group, days=days)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority-data": _base64(self.authority.pair.certificate),
                    },
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": _base64(pair.certificate),
                        "client-key-data": _base64(pair.key),
                    },
                }
            ],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": user, "namespace": namespace},
                }
            ],
        }
        return self._write(self.kubeconfig(user).name, config)

    def write_kubelet(self, name: str, pods: str, room: str = "") -> None:
        """The configuration of a node's kubelet, whose pods get addresses of the subnet ``pods``.

        With less than ``room`` of the disk free it evicts pods.
        """
        # A hard limit is taken off what the node offers, and cannot be more than it has.
        limit = {
            "evictionSoft": {"nodefs.available": room},
            "evictionSoftGracePeriod": {"nodefs.available": "1s"},
        }
        # There is no name service: this address refuses at once.
        config = {**_KUBELET, "podCIDR": pods, "clusterDNS": [self.server]}
        if room:
            config |= limit
        self._write(f"{name}.kubelet.json", config)
        self._write(f"{name}.cni.json", _cni(pods))

    def has_room(self, name: str) -> bool:
        """Whether the kubelet has the usual limits."""
        settings = json.loads((self.directory / f"{name}.kubelet.json").read_text())
        return "evictionSoft" not in settings

    def trust(self, registry: str, authority: Path) -> None:
        """containerd trusts ``authority`` for ``registry`` (``HOST:PORT``) from its next pull on."""
        hosts = self.directory / "certs.d" / registry
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "ca.crt").write_bytes(authority.read_bytes())
        (hosts / "hosts.toml").write_text(
            f'server = "https://{registry}"\n[host."https://{registry}"]\n'
            f'ca = "{INSIDE}/certs.d/{registry}/ca.crt"\n'
        )

    def _make_account_key(self) -> None:
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self.directory / "accounts.key"
        path.touch(0o600)
        path.write_bytes(pem)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.directory / "accounts.pub").write_bytes(public)

    def _write(self, name: str, value: Mapping[str, Any]) -> Path:
        path = self.directory / name
        part = path.with_name(f".{name}.part")
        part.touch(0o600)
        # JSON is YAML.
        part.write_text(json.dumps(value, indent=1))
        return part.replace(path)


def _base64(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode("ascii")


_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # Only what people do is counted in tests.
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts"]},
        {
            "level": "None",
            "users": [
                "system:apiserver",
                "system:kube-controller-manager",
                "system:kube-scheduler",
            ],
        },
        {"level": "Metadata"},
    ],
}

_KUBELET: Mapping[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": f"{INSIDE}/certificates/ca.pem"},
    },
    "authorization": {"mode": "Webhook"},
    "cgroupDriver": "cgroupfs",
    "failSwapOn": False,
    # A machine for tests may have little space left, and that is no reason to evict.
    "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi"},
    "evictionPressureTransitionPeriod": "5s",
    "imageGCHighThresholdPercent": 100,
    "enforceNodeAllocatable": [],
    "resolvConf": "",
    "clusterDomain": "cluster.local",
    "healthzPort": 0,
    # Often enough that tests see a change soon, seldom enough for two clusters on two cores.
    "nodeStatusUpdateFrequency": "3s",
    "nodeLeaseDurationSeconds": 10,
    "syncFrequency": "10s",
    # How soon a pod is evicted that has written too much.
    "volumeStatsAggPeriod": "10s",
    "registryPullQPS": 0,
    "eventRecordQPS": 0,
    "kubeAPIQPS": 100,
    "kubeAPIBurst": 200,
    "maxPods": 60,
}


def _cni(pods: str) -> Mapping[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


# Root on a machine for tests may not lower a process's out-of-memory score.
_CONTAINERD = f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs"]

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{INSIDE}/certs.d"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"""
