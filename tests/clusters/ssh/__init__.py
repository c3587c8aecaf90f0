"""Hosts without a scheduler, reached by SSH as sites let one reach theirs."""
