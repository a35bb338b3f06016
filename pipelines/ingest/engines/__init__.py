"""What runs the stages: Ray Data on a cluster and on GPUs, processes on a machine alone."""
