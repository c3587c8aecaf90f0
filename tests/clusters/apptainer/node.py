"""The Apptainer that tests run: made once per user and content, then found in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tests.clusters.daemon import StartError

_HERE = Path(__file__).parent
_SOURCES = ("node.sh", "enter.sh")


def installed() -> Path | None:
    """The folder of the machine's own ``apptainer``, if it has one."""
    found = shutil.which("apptainer")
    return Path(found).parent if found else None


@dataclass(frozen=True)
class Node:
    """A root file system with Apptainer, below ``cache`` under a name that its recipe gives."""

    cache: Path = platformdirs.user_cache_path("clustrix-containers") / "tests"

    @property
    def directory(self) -> Path:
        recipe = hashlib.sha256(b"\0".join((_HERE / name).read_bytes() for name in _SOURCES))
        return self.cache / f"apptainer-{recipe.hexdigest()[:16]}"

    @property
    def path(self) -> Path:
        """The folder with an executable named ``apptainer``, to be put on ``PATH``."""
        return self.directory / "bin"

    @property
    def _log(self) -> Path:
        return self.cache / "apptainer.log"

    def up(self) -> None:
        """Make the root file system (15 s, 250 MB); fine if it is there already."""
        self.cache.mkdir(parents=True, exist_ok=True)
        # Several test processes want it at once, and one makes it; the kernel frees the lock
        # of one that is killed.
        with (self.cache / "apptainer.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.directory.exists():
                self._make()

    def _make(self) -> None:
        if shutil.which("mmdebstrap") is None:
            raise StartError(
                "neither apptainer nor mmdebstrap is installed: run 'make setup-system' as root,"
                " or leave Apptainer out by name (--exclude apptainer)"
            )
        partial = Path(tempfile.mkdtemp(prefix=".apptainer-", dir=self.cache))
        partial.chmod(0o755)
        try:
            with self._log.open("wb") as log:
                done = subprocess.run(
                    [_HERE / "node.sh", partial],
                    check=False,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            if done.returncode != 0:
                raise StartError(
                    f"node.sh ended with {done.returncode}:\n{self.logs()}\nmmdebstrap needs root or"
                    " subordinate user ids; or leave Apptainer out by name (--exclude apptainer)"
                )
            partial.rename(self.directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def env(self) -> Mapping[str, str]:
        return {"PATH": f"{self.path}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}

    def target(self) -> str:
        return "targets:\n  apptainer: {type: local, runtime: apptainer}"

    def logs(self) -> str:
        """The end of what making it printed: it has no service of its own."""
        text = self._log.read_text("utf-8", "replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-40:])

    def down(self) -> None:
        """Remove it from the cache."""
        if self.directory.exists():
            shutil.rmtree(self.directory)
