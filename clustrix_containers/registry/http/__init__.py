"""HTTP with a registry: connections, authorization, responses."""
