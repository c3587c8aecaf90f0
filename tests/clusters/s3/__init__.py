"""A real S3 endpoint: SeaweedFS, which enforces POST policies, signatures and their expiry."""
