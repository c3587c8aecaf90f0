"""``tmpfs.py PATH BYTES``: a file system in memory at PATH, until SIGTERM takes it away.

A process holds it, so that its parent-death signal frees it.
"""

from __future__ import annotations

import signal
import subprocess
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
_, path, size = sys.argv
options = f"size={size},mode=1777"
subprocess.run(["mount", "-t", "tmpfs", "-o", options, "--", "tmpfs", path], check=True)
signal.sigwait({signal.SIGTERM})
subprocess.run(["umount", "--lazy", "--", path], check=True)
