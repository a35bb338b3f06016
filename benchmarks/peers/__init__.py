"""Scripts that run another system on the bench's corpus, each in a virtual environment of its own (`install.sh`)."""
