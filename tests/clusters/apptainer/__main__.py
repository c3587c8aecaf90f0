"""``python -m tests.clusters.apptainer up|env|logs|down``."""

from tests.clusters.apptainer.node import Node
from tests.clusters.verbs import main

main(Node())
