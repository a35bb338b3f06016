"""The embedding pipeline on Ray Data: plan, read, decode, encode, run."""
