"""What the nodes of a run tell each other."""
