"""SLURM for tests: a login node, a controller and two compute nodes, none of them with Python."""
