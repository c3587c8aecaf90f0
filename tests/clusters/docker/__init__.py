"""A Docker engine for tests: a given one, or Debian's ``dockerd`` for this run only."""
