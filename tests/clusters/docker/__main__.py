"""``python -m tests.clusters.docker up|env|logs|down``."""

import os
from pathlib import Path

from tests.clusters.docker.engine import Engine
from tests.clusters.verbs import main

# Below /tmp whatever TMPDIR says: a socket's path has 107 bytes.
main(Engine(Path(f"/tmp/clustrix-docker-{os.geteuid()}")))
