"""A callable becomes a Bundle: how it is found, its local files, and what they import."""
