"""The second stage: a cross-encoder orders again what two towers found; in searches, in evaluations, and trained."""
