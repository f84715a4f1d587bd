"""Chaos with real runs: their faults, their results, and the report."""
