"""Runs that are being watched: one poller per cluster, and what its reports mean."""
