"""OCI's values and bytes: descriptors, layers, images, archives."""
