"""Local paths and S3: where data lies, and how a step on a store is tried again."""
