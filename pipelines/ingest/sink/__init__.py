"""The exactly-once sink: claims, ledger, lease, staging, rejects, and the only committer."""
