"""A real sshd in a machine: its keys, its users, how they log in, and a client's configuration."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.machine import Machine

PUBLICKEY = "publickey"
INTERACTIVE = "keyboard-interactive"
"""PAM asks for the password, as sites do that want more than a password here."""
BOTH = "publickey,keyboard-interactive"
"""The key, and then the question: how sites with a second factor do it."""

FIRST_UID = 2001
"""The uid of the first user; an image's own users are below."""

_LISTENS = "0A"  # among the states of TCP
_CONFIG = "/etc/ssh/sshd_test_config"
_LOG = "/var/log/sshd.log"
_PID = "/run/sshd.pid"
# Prints the number of each process of sshd that it kills, whatever version it is of.
_KILL_ALL = """
for process in /proc/[0-9]*; do
    { read -r name < "$process/comm"; } 2> /dev/null || continue
    case $name in sshd*) kill -KILL "${process##*/}" 2> /dev/null && echo "$process" ;; esac
done
true
"""
# The distribution's own stack wants what a machine made of namespaces may not have (audit,
# systemd); a wrong password is answered at once.
_PAM = """auth required pam_unix.so nodelay
account required pam_unix.so
session required pam_permit.so
"""


@dataclass(frozen=True)
class Sshd:
    """The sshd of a machine whose root file system has ``openssh-server``, on port 22.

    ``directory``, on this machine, holds the keys and the password: they stay the same when the
    machine is switched off and on. ``methods`` are sshd's AuthenticationMethods: one of them is
    enough (:data:`PUBLICKEY`, :data:`INTERACTIVE`, :data:`BOTH`). ``forwarding`` allows what a
    jump host needs. ``sessions`` is MaxSessions: how many channels one connection may have.
    """

    machine: Machine
    directory: Path
    users: tuple[str, ...] = ("alice",)
    methods: tuple[str, ...] = (PUBLICKEY,)
    forwarding: bool = False
    sessions: int = 10

    @property
    def address(self) -> str:
        return self.machine.address

    @property
    def port(self) -> int:
        return 22

    @property
    def known_hosts(self) -> Path:
        """A file that names this host's key, for its address."""
        return self.directory / "known_hosts"

    @property
    def password_file(self) -> Path:
        """What PAM wants to hear from each of the users (0600)."""
        return self.directory / "password"

    @property
    def password(self) -> str:
        return self.password_file.read_text()

    def key(self, user: str = "alice") -> Path:
        """The private key of a user (0600); the public one is beside it, ``.pub``."""
        return self.directory / f"id_{user}"

    def up(self) -> None:
        """Start it in the machine, which is on, and wait until it answers; fine if it does."""
        if self.listens():
            return
        self._make_secrets()
        for number, user in enumerate(self.users):
            add_user(self.machine, user, FIRST_UID + number)
            self._write(
                f"/etc/ssh/keys/{user}", self.directory.joinpath(f"id_{user}.pub").read_text()
            )
        words = "".join(f"{user}:{self.password}\n" for user in self.users)
        self.machine.run("chpasswd", text=words)  # a locked account could not log in by key
        self._write("/etc/ssh/host_key", (self.directory / "host_key").read_text(), "600")
        self._write("/etc/pam.d/sshd", _PAM)
        self._write(_CONFIG, self._config())
        self.machine.run("mkdir", "-p", "/run/sshd")
        options: tuple[str, ...] = ("-f", _CONFIG, "-E", _LOG)
        # Newer ones shut out an address that has failed a few times: all tests have one address.
        patient = ("-o", "PerSourcePenalties=no")
        tried = self.machine.run("/usr/sbin/sshd", "-t", *options, *patient, check=False)
        options += patient if tried.returncode == 0 else ()
        self.machine.run("/usr/sbin/sshd", *options)
        if not wait_until(self.listens, 30):
            raise StartError(f"sshd of {self.machine.name} gave no answer in 30 s:\n{self.logs()}")

    def listens(self) -> bool:
        """Whether it listens, by the word of the machine's kernel: a firewall may hide it."""
        inside = Path(f"/proc/{self.machine.pid}")
        with contextlib.suppress(OSError):
            lines = (inside / "net/tcp").read_text().splitlines()[1:]
            local = {line.split()[1] for line in lines if line.split()[3] == _LISTENS}
            return (inside / f"root{_PID}").exists() and f"00000000:{self.port:04X}" in local
        return False

    def stop(self) -> None:
        """Take no more connections; those that are open go on. :meth:`up` starts it again."""
        script = f'if [ -e {_PID} ]; then kill "$(cat {_PID})"; fi'
        self.machine.run("sh", "-c", script, check=False)
        if not wait_until(lambda: not self.listens(), 30):
            raise StartError(f"sshd of {self.machine.name} does not end:\n{self.logs()}")

    def drop(self) -> None:
        """End every connection now, as when the host's sshd is killed; what runs may go on."""
        self.stop()
        if not wait_until(lambda: not self.machine.run("sh", "-c", _KILL_ALL).stdout, 30):
            raise StartError(f"connections of {self.machine.name} do not end:\n{self.logs()}")

    def logs(self) -> str:
        """The last lines that it wrote."""
        return self.machine.run("tail", "-n", "40", _LOG, check=False).stdout

    def _make_secrets(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        if not self.password_file.exists():
            with os.fdopen(os.open(self.password_file, os.O_CREAT | os.O_WRONLY, 0o600), "w") as to:
                to.write(secrets.token_urlsafe(18))
        for key in (self.directory / "host_key", *map(self.key, self.users)):
            if not key.exists():
                _make_key(key)
        public = (self.directory / "host_key.pub").read_text().split()[:2]
        # Written anew: a network that is made again has another address.
        self.known_hosts.write_text(f"{self.address} {' '.join(public)}\n")

    def _write(self, path: str, text: str, mode: str = "644") -> None:
        """A file in the machine, with its folders."""
        script = 'umask 077 && mkdir -p -m 755 -- "${1%/*}" && cat > "$1" && chmod "$2" "$1"'
        self.machine.run("sh", "-c", script, "sh", path, mode, text=text)

    def _config(self) -> str:
        interactive = any(INTERACTIVE in method for method in self.methods)
        return "".join(
            f"{key} {value}\n"
            for key, value in {
                "Port": self.port,
                "HostKey": "/etc/ssh/host_key",
                "PidFile": _PID,
                "AuthorizedKeysFile": "/etc/ssh/keys/%u",
                "AllowUsers": " ".join(self.users),
                "PermitRootLogin": "no",
                "PasswordAuthentication": "no",
                "PubkeyAuthentication": _yes(any(PUBLICKEY in it for it in self.methods)),
                "KbdInteractiveAuthentication": _yes(interactive),
                "AuthenticationMethods": " ".join(self.methods),
                "UsePAM": _yes(interactive),
                "AllowTcpForwarding": _yes(self.forwarding),
                "MaxSessions": self.sessions,
                "MaxStartups": "100:30:200",
                "UseDNS": "no",
                "X11Forwarding": "no",
                "PrintMotd": "no",
                "Subsystem": "sftp internal-sftp",
            }.items()
        )


@dataclass(frozen=True)
class Entry:
    """One host of a client's configuration: ``sshd`` under ``name``, by way of ``jump``."""

    name: str
    sshd: Sshd
    user: str = "alice"
    jump: str = ""


def write_config(file: Path, entries: Sequence[Entry]) -> None:
    """A configuration for ``ssh -F FILE NAME``; it uses no other key, agent or known host.

    For a host behind another its path has no spaces: OpenSSH's ProxyJump cannot quote it.
    """
    text = ""
    for entry in entries:
        lines = {
            "HostName": entry.sshd.address,
            "Port": str(entry.sshd.port),
            "User": entry.user,
            "IdentityFile": _quoted(entry.sshd.key(entry.user)),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": _quoted(entry.sshd.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
        }
        if entry.jump:
            if any(letter.isspace() for letter in str(file)):
                raise StartError(f"{str(file)!r}: ProxyJump cannot use a file with a space")
            lines["ProxyJump"] = entry.jump
        text += f"Host {entry.name}\n" + "".join(f"  {k} {v}\n" for k, v in lines.items())
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    part.chmod(0o600)
    part.replace(file)


def add_user(machine: Machine, name: str, uid: int) -> None:
    """An ordinary user with a home directory and a shell; fine if it is there."""
    if machine.run("id", "-u", name, check=False).returncode != 0:
        machine.run(
            *("useradd", "--create-home", "--shell=/bin/bash", f"--uid={uid}", "--user-group"),
            name,
        )


def _make_key(key: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        raise StartError("ssh-keygen is not installed: run 'make setup-system' as root")
    part = key.with_name(f".{key.name}.part")
    for left in (part, part.with_name(f"{part.name}.pub")):
        left.unlink(missing_ok=True)  # of a run that was killed: ssh-keygen would ask
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key.name, "-f", part],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    part.with_name(f"{part.name}.pub").replace(key.with_name(f"{key.name}.pub"))
    part.replace(key)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _quoted(path: Path) -> str:
    """A path as OpenSSH reads it in a configuration; ``%`` begins a token there."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
