"""Several nodes: the links between their supervisors, the leases, and the processes that keep them."""
