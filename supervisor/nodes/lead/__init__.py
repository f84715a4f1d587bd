"""The node that leads: what the others see, and their parts of groups."""
