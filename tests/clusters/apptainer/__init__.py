"""Apptainer for tests: the machine's own, or Debian sid's in a root file system of its own."""
