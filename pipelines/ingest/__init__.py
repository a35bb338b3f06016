"""The embedding pipeline: plan, read, decode, encode, stage, commit, report."""
