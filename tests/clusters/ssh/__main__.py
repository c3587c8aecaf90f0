"""``python -m tests.clusters.ssh up|env|logs|down [--variant NAME]``."""

import argparse

from tests.clusters.ssh.cluster import VARIANTS, Host
from tests.clusters.verbs import directory, main

parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--variant", choices=sorted(VARIANTS), default="plain")
options, rest = parser.parse_known_args()
main(Host(directory(f"ssh-{options.variant}"), VARIANTS[options.variant]), rest)
