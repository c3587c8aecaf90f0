"""Credentials of the user's own, found where other tools keep them."""
