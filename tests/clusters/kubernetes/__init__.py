"""A real, small Kubernetes: an API server, and nodes that pull from our registry by digest."""
