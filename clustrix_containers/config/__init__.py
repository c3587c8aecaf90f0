"""The user's directories, and clustrix.yml with the environment variables that override it."""
