"""The file system that all machines of a cluster share: a directory, or a small disk."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.sshd import FIRST_UID
from tests.clusters.slurm.variants import USER

_FOLDERS = ("home", "scratch")

# Every machine mounts the same device, so that the kernel has one file system for all. It
# frees the device with the last mount.
_MOUNT = """
set -eu
rm -f /dev/volume
mknod -m 600 /dev/volume b "$1" "$2"
mkdir -p /run/volume /home /scratch
mount -t ext4 /dev/volume /run/volume
mount --bind /run/volume/home /home
mount --bind /run/volume/scratch /scratch
"""


@dataclass(frozen=True)
class Volume:
    """/home and /scratch, in ``directory``; a disk of ``size`` MiB unless that is 0."""

    directory: Path
    size: int = 0

    def make(self) -> None:
        """Make the user's home and a scratch directory for everybody."""
        for name in _FOLDERS:
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "scratch").chmod(0o1777)
        home = self.directory / "home" / USER
        home.mkdir(exist_ok=True)
        _program("chown", f"{FIRST_UID}:{FIRST_UID}", home)
        if self.size and not self._image.exists():
            partial = self._image.with_suffix(".new")
            with partial.open("wb") as file:
                file.truncate(self.size << 20)
            _program(
                *("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal"),
                *("-d", self.directory, partial),
            )
            partial.replace(self._image)

    @property
    def binds(self) -> Mapping[Path, str]:
        """What a machine is started with."""
        return {} if self.size else {self.directory / name: f"/{name}" for name in _FOLDERS}

    def attach(self, machine: Machine) -> None:
        """Mount the disk, if it is one, in a machine that was just switched on."""
        if not self.size:
            return
        # Two devices of one image would be two file systems.
        with self._image.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if machine.run("mountpoint", "/run/volume", check=False).returncode == 0:
                return
            device = self._device() or _program("losetup", "--find", "--show", self._image).strip()
            number = Path(f"/sys/class/block/{Path(device).name}/dev").read_text().strip()
            machine.run("sh", "-c", _MOUNT, "sh", *number.split(":"))
            _program("losetup", "--detach", device)

    def down(self) -> None:
        """Give the device back; the machines are off."""
        if not self._image.exists():
            return
        if device := self._device():
            _program("losetup", "--detach", device, check=False)
        if not wait_until(lambda: not self._device(), 30):
            raise StartError(f"{self._device()} is still in use")

    @property
    def _image(self) -> Path:
        return self.directory.with_suffix(".img")

    def _device(self) -> str:
        return _program("losetup", "-n", "-O", "NAME", "-j", self._image).strip()


def _program(*arguments: str | Path, check: bool = True) -> str:
    done = subprocess.run(
        [str(it) for it in arguments], check=False, capture_output=True, text=True, timeout=60
    )
    if check and done.returncode != 0:
        raise StartError(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout
