"""``python -m tests.clusters.registry up|env|logs|down``."""

from tests.clusters.registry.cluster import Registries
from tests.clusters.verbs import directory, main

main(Registries(directory("registry")))
