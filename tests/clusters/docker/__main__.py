"""``python -m tests.clusters.docker up|env|logs|down``."""

from tests.clusters.docker.engine import Engine
from tests.clusters.verbs import directory, main

main(Engine(directory("docker")))
