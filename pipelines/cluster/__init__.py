"""Starting Ray, and the resources of this machine or a cluster."""
