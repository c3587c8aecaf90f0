"""``python -m tests.clusters.slurm up|env|logs|down [--variant NAME]``."""

import argparse

from tests.clusters.slurm.cluster import Slurm
from tests.clusters.slurm.variants import VARIANTS
from tests.clusters.verbs import directory, main

parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--variant", choices=list(VARIANTS), default="current")
options, rest = parser.parse_known_args()
main(Slurm(directory(f"slurm-{options.variant}"), VARIANTS[options.variant]), rest)
