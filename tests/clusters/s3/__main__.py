"""``python -m tests.clusters.s3 up|env|logs|down``."""

from tests.clusters.s3.cluster import S3
from tests.clusters.verbs import directory, main

main(S3(directory("s3")))
