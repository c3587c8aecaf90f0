"""Where images live: an image layout directory, or a registry of the distribution API."""
