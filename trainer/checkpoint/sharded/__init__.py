"""State of which each rank has a part: which part it is, who writes it, and who needs it."""
