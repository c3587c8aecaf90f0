"""``python -m tests.clusters.registry up|env|logs|down``."""

import os
import tempfile
from pathlib import Path

from tests.clusters.registry.cluster import Registries
from tests.clusters.verbs import main

main(Registries(Path(tempfile.gettempdir()) / f"clustrix-registry-{os.geteuid()}"))
