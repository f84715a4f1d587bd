"""Runs anybody's script in a rank, and tells the supervisor how it goes."""
