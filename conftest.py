"""The plugins of the whole suite: pytest wants them named in the outermost conftest."""

from hypothesis import HealthCheck, settings

# Examples run beside clusters: how long one takes says nothing.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

pytest_plugins = [
    "tests.clusters.plugin",
    "tests.clusters.registry.fixtures",
    "tests.clusters.docker.fixtures",
    "tests.clusters.apptainer.fixtures",
    "tests.clusters.machines.fixtures",
    "tests.clusters.slurm.fixtures",
    "tests.clusters.ssh.fixtures",
    "tests.clusters.kubernetes.fixtures",
    "tests.clusters.s3.fixtures",
]
