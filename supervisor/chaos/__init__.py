"""Chaos for real: the runs, their faults, what became of them, and how that is shown."""
