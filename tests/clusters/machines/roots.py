"""Root file systems of machines: made by mmdebstrap once per user and recipe, then cached."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tests.clusters.daemon import StartError

_MIRROR = Path(__file__).parents[3] / "scripts" / "debian-mirror.sh"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_FORMAT = "1"


@dataclass(frozen=True)
class Recipe:
    """What a root file system is made of.

    ``packages`` of the Debian ``suite``, and all that they require; ``script`` is run by ``sh``
    at the end, on this machine as root, with the root file system as its working directory.
    ``variant`` is mmdebstrap's.
    """

    name: str
    suite: str
    packages: tuple[str, ...]
    script: str = ""
    variant: str = "essential"

    @property
    def key(self) -> str:
        parts = (_FORMAT, self.suite, self.variant, *sorted(self.packages), self.script)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cache() -> Path:
    """Where things for tests lie that are expensive to make, and found by content."""
    return platformdirs.user_cache_path("clustrix-containers") / "tests"


def place(recipe: Recipe) -> Path:
    """Where the recipe's root file system is, or will be."""
    return cache() / f"root-{recipe.name}-{recipe.key}"


def root(recipe: Recipe) -> Path:
    """The recipe's root file system, which is made if it is not there (15 s to a minute)."""
    directory = place(recipe)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Several processes want it at once, and one makes it; the kernel frees the lock of one
    # that is killed.
    with (cache() / f"root-{recipe.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            _make(recipe, directory)
    return directory


def _make(recipe: Recipe, directory: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise StartError("mmdebstrap is not installed: run 'make setup-system' as root")
    print(f"making the root file system {recipe.name} (up to a minute)", file=sys.stderr)
    mirror = subprocess.run([_MIRROR], check=True, capture_output=True, text=True).stdout.strip()
    partial = Path(tempfile.mkdtemp(prefix=f".{recipe.name}-", dir=directory.parent))
    partial.chmod(0o755)
    options = [f"--variant={recipe.variant}", f"--include={','.join(recipe.packages)}"]
    options += [
        f"--aptopt={it}" for it in ('APT::Install-Recommends "false"', 'Acquire::Retries "3"')
    ]
    if recipe.suite == "sid":
        # A mirror that is frozen at a date has a Release file of sid that is past its own.
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
    source = f"deb [signed-by={_KEYRING}] {mirror} {recipe.suite} main"
    try:
        _logged(["mmdebstrap", *options, recipe.suite, str(partial / "root"), source], directory)
        _logged(["sh", "-euc", recipe.script], directory, partial / "root")
        (partial / "root").rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _logged(command: list[str], directory: Path, where: Path | None = None) -> None:
    log = directory.with_suffix(".log")
    with log.open("ab" if where else "wb") as file:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=where,
        )
    if done.returncode != 0:
        lines = log.read_text("utf-8", "replace").splitlines()[-40:]
        raise StartError(f"{command[0]} ended with {done.returncode}:\n" + "\n".join(lines))
