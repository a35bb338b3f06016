"""What turns an encoder into something that can be trained, and back into a directory: models, tuning, optimiser."""
