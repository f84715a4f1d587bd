"""Runs any script in a rank, and reports to the supervisor."""
