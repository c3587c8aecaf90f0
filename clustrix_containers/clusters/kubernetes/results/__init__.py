"""Results on their way from pods to the client."""
