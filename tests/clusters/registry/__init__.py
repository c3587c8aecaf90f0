"""Debian's docker-registry three times: open; TLS and a password file; bearer tokens."""
