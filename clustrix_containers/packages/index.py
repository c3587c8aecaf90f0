"""Fetches wheels from the user's own index by the user's own pip: its configuration, its credentials, its cache.

One process for all of them. pip downloads all or nothing, so what it names as missing is left
out and the rest asked for again, a few times at most; a network that is down ends it at once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clustrix_containers.oci.store import Progress

ROUNDS = 6
"""How often pip is asked, at most."""

TIMEOUT = 900.0
"""Seconds for which one pip may run."""

_MISSING = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)")
_OFFLINE = re.compile(
    r"NewConnectionError|ConnectTimeoutError|NameResolutionError|Connection refused"
    r"|Temporary failure in name resolution|Network is unreachable|ProxyError|Read timed out"
)


@dataclass(slots=True)
class Fetched:
    """What came: wheel files by name; why the others did not; whether no index answered."""

    wheels: dict[str, Path] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    offline: bool = False


def download(
    requirements: Mapping[str, str], folder: Path, progress: Progress | None = None
) -> Fetched:
    """Fetch the wheels of ``name -> name==version`` into ``folder``; never raises for want of one."""
    result = Fetched()
    wanted = dict(requirements)
    if importlib.util.find_spec("pip") is None:
        result.reasons = dict.fromkeys(wanted, "there is no pip in this environment to fetch it")
        return result
    for _ in range(ROUNDS):
        if not wanted:
            break
        if progress:
            progress("fetching wheels", len(requirements) - len(wanted), len(requirements))
        output = _pip(list(wanted.values()), folder)
        if output is None:
            break
        if _OFFLINE.search(output):
            result.offline = True
            result.reasons.update(dict.fromkeys(wanted, "no package index answered"))
            break
        absent = {_plain(name) for name in _MISSING.findall(output)} & set(wanted)
        if not absent:
            last = output.strip().splitlines()[-1:] or ["pip failed"]
            result.reasons.update(dict.fromkeys(wanted, last[0]))
            break
        for name in absent:
            result.reasons[name] = "the index has no wheel of it for this machine"
            del wanted[name]
    for path in sorted(folder.glob("*.whl")):
        name = _plain(path.name.split("-")[0])
        if name in requirements:
            result.wheels[name] = path
    if progress:
        progress("fetching wheels", len(requirements), len(requirements))
    return result


def download_exactly(requirements: Mapping[str, str], folder: Path) -> str | None:
    """Fetch the very files of ``name==version -> sha256`` into ``folder``: all, or what pip said.

    What is fetched has been compared with its hash.
    """
    if importlib.util.find_spec("pip") is None:
        return "there is no pip in this environment to fetch it"
    listing = folder / "requirements.txt"
    listing.write_text(
        "".join(f"{name} --hash=sha256:{sha256}\n" for name, sha256 in requirements.items())
    )
    return _pip(["--require-hashes", "--requirement", str(listing)], folder)


def _pip(requirements: list[str], folder: Path) -> str | None:
    """``None`` if pip has fetched them, else what it said."""
    command = [
        *(
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
        ),
        *("--disable-pip-version-check", "--no-color", "--quiet", "--retries", "1"),
        *("--timeout", "10", "--dest", str(folder), *requirements),
    ]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=TIMEOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return f"pip could not be run to its end: {error}"
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    return None if done.returncode == 0 else output


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
