"""Starting Ray, and what this machine or a cluster offers."""
