"""Chaos: which faults strike a run and when, what must be seen of each, and whether it was. Pure."""
