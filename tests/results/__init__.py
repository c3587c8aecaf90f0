"""Results through real stores: S3 and registries, the worker run for real."""
