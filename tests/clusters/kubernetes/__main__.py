"""``python -m tests.clusters.kubernetes up|env|logs|down``."""

from tests.clusters.kubernetes.cluster import Kubernetes
from tests.clusters.verbs import directory, main

main(Kubernetes(directory("kubernetes")))
