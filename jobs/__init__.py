"""One file per job: a typed config and `run(config)`; the command line."""
