"""Chaos: the faults that strike a run, their times, the expected signs of each, and the check of them. Pure."""
