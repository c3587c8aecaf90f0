"""A Docker engine for tests: one that is given, or Debian's ``dockerd`` for this run alone."""
