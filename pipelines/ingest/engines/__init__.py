"""Engines that run the stages: Ray Data on clusters and GPUs, worker processes on a single machine."""
