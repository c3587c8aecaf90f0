"""Measurements of this package and its peers: ``make bench``."""
