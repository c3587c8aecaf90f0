"""Wheels of the distributions: found in an index, and made into layers."""
