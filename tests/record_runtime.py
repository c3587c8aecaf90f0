"""Which bytes each version of the runtime has: ``runtime_versions.json``, beside this file.

After a change to what images carry (``clustrix_containers.image.runtime.RUNTIME``), raise
``RUNTIME_VERSION`` in ``clustrix_containers/worker/contract.py`` if its version was ever released,
then run ``python -m tests.record_runtime``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clustrix_containers.image.runtime import runtime

RECORD = Path(__file__).with_name("runtime_versions.json")


def recorded() -> dict[str, str]:
    """The sha256 (hex) of each version's bytes, as ``image.runtime.runtime`` computes it."""
    versions: dict[str, str] = json.loads(RECORD.read_text())
    return versions


def main() -> int:
    versions, current = recorded(), runtime()
    if any(int(version) > int(current.version) for version in versions):
        sys.stderr.write(f"version {current.version} is older than what is recorded\n")
        return 1
    versions[current.version] = current.sha256
    RECORD.write_text(json.dumps(versions, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
