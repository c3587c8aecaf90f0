"""What runs in the container, and its contract with the client."""
