"""Access to local paths and S3, and retries of steps on a store."""
