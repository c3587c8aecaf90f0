"""The user's own credentials, from where other tools keep them."""
